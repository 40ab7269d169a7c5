"""Problems of validated values in the words of a configuration file, from pydantic's errors."""

from pydantic_core import ErrorDetails

EXPECTED = {
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("list_type", "tuple_type", "set_type"), "a list"),
    **dict.fromkeys(("dict_type", "model_type", "dataclass_type", "model_attributes_type"), "a table"),
    **dict.fromkeys(("path_type", "path_not_file", "path_not_directory"), "a path"),
    "string_type": "a string",
    "finite_number": "a finite number",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "literal_error": "{expected}",
    "string_too_short": "at least {min_length} characters long",
    "string_too_long": "at most {max_length} characters long",
    "string_pattern_mismatch": "text that matches {pattern!r}",
}
"""What a value must be, by pydantic's type of error, with the error's context."""


def described(where: str, problem: ErrorDetails) -> str:
    """Describe a problem as a sentence.

    :param where: key or option, such as ``federation.rounds``; empty if the whole is invalid
    :return: for example ``federation.rounds must be a whole number, not 'many'``
    """
    kind = problem["type"]
    if kind == "missing":
        return f"{where} is missing"
    if kind not in EXPECTED:
        message = problem["msg"].removeprefix("Value error, ")
        return f"{where}: {message}" if where else message
    given = problem["input"]
    shown = str(given).lower() if isinstance(given, bool) else f"{given!r:.80}"
    found = f", not {shown}" if isinstance(given, str | int | float) else ""
    return f"{where or 'the value'} must be {EXPECTED[kind].format(**problem.get('ctx', {}))}{found}"
