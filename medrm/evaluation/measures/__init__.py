"""The numbers of `report.json`, from verdict rows and cases alone."""
