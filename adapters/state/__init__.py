"""What an optimizer keeps: slots under their names, groups, and how both are loaded."""
