"""Pictures and pages of what the planners did."""
