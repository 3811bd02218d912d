"""Thin ROS 2 shells around the localizer: parameters, quality of service, messages."""
