"""Modules that own a prompt's parameters and make its rows.

base_provider    what every provider offers
tensor_provider  the rows themselves as parameters
reparametrized   rows out of a small network: LSTM and MLP
prefix_tuning    deep prompts: keys and values for every layer
module_provider  any module that returns rows
row_init         first values of rows; init_mode has the names of the ways to make them
kv_shape         the sizes of a deep prompt's keys and values
freeze           freezing a model around its providers
"""
