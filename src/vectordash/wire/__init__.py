"""The contract: what travels over HTTP, one file a noun. Imports nothing of ours; both ends import it.

A documented object carries exactly the documented keys, in the documented order and types. To add a field
to the API, add it to its struct here and fill it where the service builds the struct.
"""
