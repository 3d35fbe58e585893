"""The command line, recipes, calibration files, jobs."""
