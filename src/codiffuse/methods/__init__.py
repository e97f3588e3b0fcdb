"""Methods: blind and non-blind samplers, each a frozen dataclass that is called on a measurement."""
