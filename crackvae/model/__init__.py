"""The ConvVAE: network, loss, scoring, and the artifact that holds a trained one."""
