"""How large a prompt and its files may be; a file beyond a limit is refused before it is parsed.

A prompt's file may come from anybody. Each limit is far above what prompts need and low enough that a refusal takes
well below a second and a few dozen megabytes.
"""

from __future__ import annotations

MAX_ROWS = 20_000
"""Rows of one template. A prompt has some tens of rows, and beyond a few hundred more rows have not helped."""

MAX_FIELDS = 10_000
"""Fields of one template, each place counted. Templates written by people have fewer than ten."""

MAX_BRACES = 20_000
"""Opening braces of a template, those of fields and those that are text; each makes a part of its own."""

MAX_KEY_CHARS = 1_000
"""Characters of the key in a marker, which is a name that people type."""

MAX_TEMPLATE_CHARS = 2 * 2**20
"""Characters of a template, in either notation: room for markers with a key of ninety letters on all rows."""

MAX_JSON_BYTES = 2 * 2**20
"""Bytes of ``prompt.json``, ``ensemble.json`` and ``adapter_config.json``; parsed, a byte may take 40 in memory."""

MAX_JSON_BRACKETS = 100_000
"""Opening brackets and braces of such a file, those in texts too: twice a template's braces, and one for every row
whose marker has a key."""

MAX_JSON_DEPTH = 32
"""Levels of lists and objects in such a file; ours have three, PEFT's four. Deeper values could not be saved again."""

MAX_INTEGER_DIGITS = 18
"""Digits of an integer in such a file, so that it fits into 64 bits. Parsing long ones takes quadratic time."""

MAX_TENSOR_FILE_BYTES = 2**30
"""Bytes of a file of rows, 1 GiB: 1,000 rows of a deep prompt, in float32, for a model of 400 billion weights."""

MAX_INDEX_BYTES = 2**20
"""Bytes of what says where the tensors lie: a safetensors header, a pickle, the directory of a zip archive. 10,000
tensors need this much; a prompt has one."""

MAX_PICKLE_OPCODES = 100_000
"""Steps of a pickle. A tensor takes about 30 of them."""

MAX_PICKLE_DEPTH = 3
"""Levels of tuples in a pickle: the arguments of a tensor hold a tuple of its sizes."""

MAX_TENSOR_DIMS = 8
"""Dimensions of a tensor in a file; rows have two, a multitask adapter's factors three."""

MAX_TASK_RANK = 256
"""Rank of a multitask adapter's factors; PEFT's default is 1. Their product takes time in proportion to it."""

MAX_MEMBERS = 1_000
"""Members of an ensemble. Loading one takes about two milliseconds."""

MAX_ENSEMBLE_BYTES = 4 * 2**30
"""Bytes of the rows of all members, 4 GiB, also where links make many members of one file."""

MAX_NAMES_SHOWN = 20
"""Files of a folder that a message lists."""
