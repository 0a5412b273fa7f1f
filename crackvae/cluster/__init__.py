"""What runs on Ray: training and surveys. The only room that imports ray."""

import os

# Read when Ray is imported: on one machine it then listens on loopback only, as it does on macOS and Windows.
if not os.environ.get("RAY_ADDRESS"):
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
