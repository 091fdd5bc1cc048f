"""A step as data: operations, trace, plan and passes. Nothing here knows a device."""
