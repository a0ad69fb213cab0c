"""From image files to arrays by device, splits and streams."""
