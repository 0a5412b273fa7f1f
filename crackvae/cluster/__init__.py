"""What runs on Ray: training and surveys. The only room that imports ray."""
