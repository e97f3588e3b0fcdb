"""Networks: plain `nn.Module`s that know nothing of schedules, spaces or measurements."""
