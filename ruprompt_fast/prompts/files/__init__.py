"""Prompts on disk and on the Hugging Face Hub.

storage          saving and loading, as a prompt offers them
prompt_sources   finding the files of a prompt, wherever they are
prompt_folder    a folder of ours or of ruPrompts; peft_folder one of PEFT, ensemble_folder one of an ensemble
prompt_config    what a prompt remembers about the model that it was made for; base_model what that model is
rows_file        a file of rows
hub              downloads and uploads
paths            paths that a caller gives
reading          strangers' files, read with bounds
"""
