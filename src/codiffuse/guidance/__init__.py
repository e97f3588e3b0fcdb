"""Guidance: approximations of grad log p(y | x_t, params), and how they enter a reverse step.

Each approximation gives a *cotangent* in the space of x0-hat; pulling it back through the denoiser (one vector-Jacobian
product) makes it the gradient with respect to x_t.
"""
