"""Where a chat endpoint is and how it is asked: a part of plans in YAML."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import yaml
from pydantic import Field, field_validator

from xgem.configs.base import Config
from xgem.types import ConfigError
from xgem.utils.files import one_line

PREFIX: Final = "chat:"
"""Begins the name of a judge or labeller that is a model at an endpoint; :meth:`ChatSettings.named` reads the rest."""


class ChatSettings(Config):
    """An endpoint of the OpenAI protocol (vLLM, llama.cpp's server, a hosted model), its model and its sampling."""

    base_url: str = Field(description="Address up to /v1, such as http://localhost:8000/v1.")
    model: str = Field(min_length=1, description="The model's name at the endpoint.")
    api_key_env: str | None = Field(
        default=None, min_length=1, description="Name of the environment variable with the key; never the key itself."
    )
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    seed: int | None = 0
    max_tokens: int = Field(default=1024, ge=1)
    timeout: float = Field(default=120.0, gt=0, allow_inf_nan=False, description="Seconds that a request may take.")
    retries: int = Field(default=4, ge=0, description="Further attempts after a failed or unusable answer.")
    concurrency: int = Field(default=8, ge=1, le=1024, description="Requests at the same time.")
    price_input: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="Price of a million input tokens.")
    price_output: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="Price of a million output tokens.")

    @field_validator("base_url")
    @classmethod
    def _address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected an address such as http://localhost:8000/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError("expected an address without a key; name the key's environment variable in api_key_env")
        return url.rstrip("/")

    @classmethod
    def named(cls, name: str) -> ChatSettings:
        """The endpoint of ``chat:URL#MODEL``, or of ``chat:FILE``, a YAML file with these fields.

        Raises:
            ConfigError: another name, or a file that cannot be read; says what was expected.
        """
        place = name.removeprefix(PREFIX)
        if not name.startswith(PREFIX) or not place:
            raise ConfigError(f"{name!r}: expected chat:FILE.yaml or chat:http://HOST/v1#MODEL")
        if place.startswith(("http://", "https://")):
            url, _, model = place.partition("#")
            if not model:
                raise ConfigError(f"{name}: no model; expected chat:http://HOST/v1#MODEL")
            return cls.parse({"base_url": url, "model": model}, name)
        try:
            return cls.parse(yaml.safe_load(Path(place).read_text(encoding="utf-8")), place)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(
                f"{place}: cannot be read as YAML ({one_line(error)}); expected base_url, model"
            ) from None

    @property
    def host(self) -> str:
        """Host and port."""
        return urlsplit(self.base_url).netloc

    @property
    def key(self) -> str | None:
        """The key, from the environment.

        Raises:
            ConfigError: the environment variable is not set.
        """
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ConfigError(f"api_key_env: the environment variable {self.api_key_env} is not set; export the key")
        return key

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """The price of these tokens."""
        return (input_tokens * self.price_input + output_tokens * self.price_output) / 1e6
