"""Reading files that may come from anybody: bounded, without mapped memory, and without running anything of theirs.

regular_file      a file that is open for reading, and no pipe or device
json_object       JSON of a bounded size
safetensors_file  the index of a safetensors file
torch_file        files of torch.save: zip_directory the archive, pickled and pickled_values what its pickle says
stored_tensor     a tensor that a file holds, before its numbers are read
stored_rows       the rows of a prompt out of whatever a file holds
"""
