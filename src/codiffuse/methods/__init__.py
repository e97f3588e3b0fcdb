"""Methods: blind and non-blind samplers, each a frozen dataclass of hyper-parameters that is called on a measurement."""
