"""`make demo`: the whole chain on real imagery, from a map to positions received over ROS 2."""
