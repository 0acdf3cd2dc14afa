"""A base class whose subclasses override two methods, as annotated papers write optimizers."""
