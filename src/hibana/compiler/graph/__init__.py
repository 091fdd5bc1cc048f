"""A step as data: operations, trace, plan and passes, for every device."""
