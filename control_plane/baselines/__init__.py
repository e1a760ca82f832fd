"""What a strong expert would run without wattray, behind the same protocols."""
