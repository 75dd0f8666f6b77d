# SPDX-License-Identifier: GPL-2.0-or-later
"""What upgradectl --json printed."""

import json


def documents(text):
    """Some verbs print several, one after the other."""
    decoder, found, text = json.JSONDecoder(), [], text.strip()
    while text:
        document, end = decoder.raw_decode(text)
        found.append(document)
        text = text[end:].strip()
    return found
