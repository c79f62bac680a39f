"""Values that seem right and are not: each is either taken for what it means, or refused in one line."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.errors import ConfigurationError
from settings import Settings, env_file_line, environment, load, name_warnings, read_env_file

SECRET = "hunter2hunter2"
NODE = f"https://node.example/{SECRET}"
OTHER = f"https://other.example/{SECRET}"
POSTGRES = f"postgresql://u:{SECRET}@h/d"
TOKEN = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"
WALLET = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"

GOOD = {
    "DATABASE_URL": POSTGRES,
    "SERVICE_DATABASE_URL": POSTGRES,
    "SETTLEMENT_DATABASE_URL": POSTGRES,
    "MIGRATION_DATABASE_URL": POSTGRES,
    "OPERATOR_DATABASE_URL": POSTGRES,
    "CHAIN_RPC_URLS": NODE,
    "PRICE_FEED_RPC_URLS": NODE,
    "USDC_TOKEN_ADDRESS": TOKEN,
    "TREASURY_ADDRESS": WALLET,
    "FINALITY": "safe",
    "FINALITY_LARGE": "finalized",
    "SYSTEM_TENANT_REVENUE_SHARE": "0.5",
    "API_URL": "https://pay.example.com",
    "API_HOST": "0.0.0.0",
    "TRUSTED_PROXIES": "10.0.0.0/8",
    "PLATFORM_NAME": "Cogni",
    "EXPLORER_TX_URL": "https://explorer.example/tx/{tx_hash}",
    "PUBLIC_RPC_URL": "https://node.example",
    "OPERATOR_WALLETS": WALLET,
    "SMART_WALLET_FACTORIES": WALLET,
    "SCHEDULES_FILE": "/etc/settle/schedules.yaml",
    "EVENT_SINK_URL": NODE,
    "RECONCILIATION_DIR": "/var/lib/settle",
    "TEMPORAL_UI_URL": "https://temporal.example",
    "WORKER_HEALTH_HOST": "0.0.0.0",
    "RELAY_DATABASE_URL": POSTGRES,
    "RELAY_PRIVATE_KEY": "0x" + "42" * 32,
    "RELAY_PRIVATE_KEY_FILE": "/etc/settle/relay.key",
    "RELAY_HEALTH_HOST": "0.0.0.0",
    "GATEWAY_URL": "https://ai.example.com",
    "GATEWAY_HOST": "0.0.0.0",
    "UPSTREAMS_FILE": "/etc/settle/upstreams.yaml",
    "CLAMP_OUTPUT_TOKENS": "true",
    "WEBHOOK_ALLOW_PRIVATE": "true",
    "NATIVE_COIN_DEPOSITS": "true",
    "BILLING_INGEST_SECRET": SECRET,
    "GOVERNANCE_MODEL": "gpt-5-mini",
    "GOVERNANCE_PROMPT_FILE": "/etc/settle/prompt.txt",
    "GOVERNANCE_SERVICE_KEY": SECRET,
    "LOG_LEVEL": "INFO",
    "LOG_FORMAT": "json",
}
"""A good value of every setting that is not a number; numbers have 100 (`_good`)."""

NAMES = sorted(str(field.alias) for field in Settings.model_fields.values())
NUMBERS = [str(field.alias) for field in Settings.model_fields.values() if field.annotation in (int, float, int | None)]
FRACTIONAL = [str(field.alias) for field in Settings.model_fields.values() if field.annotation is float]
URLS = (
    "CHAIN_RPC_URLS",
    "PRICE_FEED_RPC_URLS",
    "API_URL",
    "EXPLORER_TX_URL",
    "PUBLIC_RPC_URL",
    "EVENT_SINK_URL",
    "TEMPORAL_UI_URL",
)


def _good(name: str) -> str:
    return GOOD.get(name, "5" if name == "CHAIN_RPC_TIMEOUT_SECONDS" else "100")


def _refusal(name: str, value: str) -> str:
    with pytest.raises(ConfigurationError) as refused:
        load({name: value})
    line = refused.value.message
    assert refused.value.setting == name
    assert ", expected " in line
    assert line.isprintable()
    assert SECRET not in line
    return line


# -- every setting


@pytest.mark.slow(but="each value")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "wrapped",
    [
        "{}\n{}",
        "{}\t{}",
        "\ufeff{}",
        "{}\u200b",
        "\u200b{}",
        '"{}"',
        "'{}'",
        "\u201c{}\u201d",
        "{}\x00",
        " ",
        "\u202e{}",
    ],
)
def test_invisible_characters_and_quotation_marks_are_refused_in_every_setting(name: str, wrapped: str) -> None:
    _refusal(name, wrapped.format(*[_good(name)] * 2))


@pytest.mark.slow(but="each value")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("around", [" {} ", "{}\r", "\t{}", "{}\n", "\u00a0{}"])
def test_white_space_around_a_value_is_no_part_of_it(name: str, around: str) -> None:
    assert load({name: around.format(_good(name))}) == load({name: _good(name)})


# -- lists


@pytest.mark.parametrize("separator", ["\n", "\r\n", " ", "\t", ";", "; ", "|", " , ; ", "", ",,", ",\u200b,"])
def test_nodes_that_are_not_separated_by_single_commas_are_refused(separator: str) -> None:
    _refusal("CHAIN_RPC_URLS", f"{NODE}{separator}{OTHER}")


@pytest.mark.parametrize("written", ["{},{}", "{} , {}", "{},{},", " {},{} ", "{},\t{}"[:3] + "{}"])
def test_nodes_separated_by_commas_are_as_many_as_are_named(written: str) -> None:
    assert load({"CHAIN_RPC_URLS": written.format(NODE, OTHER)}).chain_rpc_urls == (NODE, OTHER)


@pytest.mark.parametrize(
    ("one", "same"),
    [
        ("https://node.example/key", "https://node.example/key"),
        ("https://node.example/key", "https://node.example/key/"),
        ("https://node.example/key", "https://NODE.Example/key"),
        ("https://node.example/key", "HTTPS://node.example:443/key"),
        ("https://node.example/key", "http://node.example/key"),
        ("https://node.example/key", "https://node.example./key"),
        ("https://a:b@node.example/key", "https://c:d@node.example/key"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("http://localhost:8545", "http://127.0.0.1:8545"),
        ("http://[::1]:8545", "http://[0:0:0:0:0:0:0:1]:8545"),
    ],
)
def test_one_node_named_twice_is_no_second_vote(one: str, same: str) -> None:
    assert "number 1" in _refusal("CHAIN_RPC_URLS", f"{one},{same}")
    assert "number 3" in _refusal("CHAIN_RPC_URLS", f"{one},{NODE},{same}")


@pytest.mark.parametrize(
    "pair",
    [
        "https://node.example/key,https://node.example/other",
        "https://node.example?key=1,https://node.example?key=2",
        "http://node.example:8545,http://node.example:8546",
    ],
)
def test_nodes_that_differ_by_port_path_or_query_are_two(pair: str) -> None:
    assert load({"CHAIN_RPC_URLS": pair}).chain_rpc_urls == tuple(pair.split(","))


@pytest.mark.parametrize("name", ["OPERATOR_WALLETS", "TRUSTED_PROXIES", "SMART_WALLET_FACTORIES"])
@pytest.mark.parametrize("separator", ["\n", " ", ";", "|", ",,"])
def test_other_lists_want_single_commas_too(name: str, separator: str) -> None:
    _refusal(name, separator.join([_good(name)] * 2))


@pytest.mark.parametrize("everybody", ["0.0.0.0/0", "::/0", "10.0.0.1,0.0.0.0/0", "::ffff:0:0/96"])
def test_not_every_address_is_a_proxy(everybody: str) -> None:
    _refusal("TRUSTED_PROXIES", everybody)


def test_proxies_are_compared_as_addresses() -> None:
    settings = load({"TRUSTED_PROXIES": "10.0.0.1, 10.0.0.1/32, ::ffff:10.0.0.1, fd00::1"})
    assert settings.trusted_proxies == ("10.0.0.1/32", "fd00::1/128")


# -- addresses of servers


@pytest.mark.parametrize(
    ("written", "origin"),
    [
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("https://BÜCHER.example:443/", "https://xn--bcher-kva.example"),
        ("https://straße.example", "https://xn--strae-oqa.example"),
        ("https://пример.рф", "https://xn--e1afmkfd.xn--p1ai"),
        ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example"),
        ("https://XN--BCHER-KVA.example", "https://xn--bcher-kva.example"),
        ("https://ｐａｙ.example。com", "https://pay.example.com"),
        ("HTTP://Pay.Example.com:80", "http://pay.example.com"),
        ("http://[0:0:0:0:0:0:0:1]:8080", "http://[::1]:8080"),
        ("http://[::FFFF:127.0.0.1]", "http://[::ffff:7f00:1]"),
        ("http://localhost:08080", "http://localhost:8080"),
    ],
)  # fmt: skip
def test_the_apis_address_is_what_a_browser_makes_of_it(written: str, origin: str) -> None:
    assert load({"API_URL": written}).api_url == origin


@pytest.mark.parametrize(
    "value",
    [
        "https://pay.example.com,https://pay.example.org",
        "https://pay.example.com;https://pay.example.org",
        "https://pay.example.com https://pay.example.org",
        "https://pay..example.com",
        "https://-pay.example.com",
        "https://pay.example.com.",
        "https://pay.example.com:",
        "https://pay.example.com:0",
        "https://pay.example.com:65536",
        "https://pay.example.com:８０",
        "https://pay.example.com?",
        "https://pay.example.com#",
        "https://@pay.example.com",
        "https://pay%2eexample.com",
        "https://pay.example.com\\evil.example",
        "https://256.0.0.1",
        "https://127.1",
        "https://0x7f.0.0.1",
        "https://2130706433",
        "https://[::1",
        "https://[::1]x",
        "https://[fe80::1%25eth0]",
        "https://xn--a.example",
        "https:/pay.example.com",
        "https:pay.example.com",
        "//pay.example.com",
        "https://https://pay.example.com",
        f"https://{'a' * 64}.example",
        f"https://me:{SECRET}@pay.example.com",
    ],
)
def test_an_address_that_no_browser_has_is_refused(value: str) -> None:
    _refusal("API_URL", value)


@pytest.mark.slow(but="each value")
@pytest.mark.parametrize("name", URLS)
@pytest.mark.parametrize(
    "broken",
    [
        "https://no de.example",
        "https://node.example:abc",
        "https://node.example:70000",
        "https://.example",
        "https://",
        f"https://{SECRET}@",
        "https://300.1.1.1",
        "https://[::1",
        "https://\u2100.example:{}",
        "httpx://node.example",
        "https;//node.example",
        "https://nöde\u2024example.{}",
    ],
)
def test_no_setting_takes_an_address_that_is_none(name: str, broken: str) -> None:
    _refusal(name, broken if name != "EXPLORER_TX_URL" else f"{broken}/{{tx_hash}}")


@pytest.mark.parametrize(
    ("name", "written", "field", "value"),
    [
        ("CHAIN_RPC_URLS", "HTTPS://u:P%40s@NODE.example:443/Key", "chain_rpc_urls", ("https://u:P%40s@node.example/Key",)),
        ("CHAIN_RPC_URLS", "https://bücher.example/Ü", "chain_rpc_urls", ("https://xn--bcher-kva.example/Ü",)),
        ("CHAIN_RPC_URLS", "http://base_node:8545", "chain_rpc_urls", ("http://base_node:8545",)),
        ("CHAIN_RPC_URLS", "http://node.svc.cluster.local.:8545", "chain_rpc_urls",
         ("http://node.svc.cluster.local.:8545",)),
        ("EVENT_SINK_URL", "https://Bücher.example/In?key=1", "event_sink_url", "https://xn--bcher-kva.example/In?key=1"),
        ("TEMPORAL_UI_URL", "https://Bücher.example/ui", "temporal_ui_url", "https://xn--bcher-kva.example/ui"),
        ("PUBLIC_RPC_URL", "http://[::1]:8545", "public_rpc_url", "http://[::1]:8545"),
        ("EXPLORER_TX_URL", "https://Bücher.example/#/tx/{tx_hash}", "explorer_tx_url",
         "https://xn--bcher-kva.example/#/tx/{tx_hash}"),
    ],
)  # fmt: skip
def test_an_address_is_kept_as_it_will_be_looked_up(name: str, written: str, field: str, value: object) -> None:
    assert getattr(load({name: written}), field) == value


@pytest.mark.parametrize("name", ["API_URL", "PUBLIC_RPC_URL", "TEMPORAL_UI_URL", "EXPLORER_TX_URL"])
def test_public_values_carry_no_password(name: str) -> None:
    _refusal(name, _good(name).replace("://", f"://me:{SECRET}@"))


@pytest.mark.parametrize("name", ["CHAIN_RPC_URLS", "EVENT_SINK_URL", "PUBLIC_RPC_URL", "TEMPORAL_UI_URL"])
def test_a_password_with_a_hash_in_it_is_not_cut_off(name: str) -> None:
    _refusal(name, "https://node.example/key#rest")


@pytest.mark.parametrize(
    "value",
    [
        "https://e.example/{tx_hash}/{tx_hash}",
        "https://e.example/{txHash}",
        "https://e.example/{tx_hash}/{block}",
        "https://e.example/{{tx_hash}}",
        "https://{tx_hash}.example/",
        "https://e.example/{TX_HASH}",
        "https://e.example/{tx_hash",
    ],
)
def test_an_explorers_address_has_one_place_for_the_hash(value: str) -> None:
    _refusal("EXPLORER_TX_URL", value)


@pytest.mark.parametrize("name", ["API_HOST", "WORKER_HEALTH_HOST"])
@pytest.mark.parametrize(
    "value",
    ["*", "http://0.0.0.0", "0.0.0.0:8080", "[::]:8080", "0.0.0.0/0", "0.0.0", "256.0.0.1", "a b", "::g", "a,b"],
)
def test_one_listens_on_a_host(name: str, value: str) -> None:
    _refusal(name, value)


@pytest.mark.parametrize(
    ("written", "host"), [("[::]", "::"), ("::1", "::1"), ("LOCALHOST", "localhost"), ("0.0.0.0", "0.0.0.0")]
)
def test_a_host_to_listen_on_is_written_as_sockets_want_it(written: str, host: str) -> None:
    assert load({"API_HOST": written}).api_host == host


# -- addresses on the chain


@pytest.mark.parametrize("name", ["USDC_TOKEN_ADDRESS", "TREASURY_ADDRESS", "OPERATOR_WALLETS"])
@pytest.mark.parametrize(
    "value",
    [
        TOKEN.swapcase(),
        TOKEN.replace("0x", "0X"),
        TOKEN[2:],
        TOKEN.replace("f", "F", 1),
        "0x" + "0" * 40,
        "0X" + "0" * 40,
        TOKEN + "00" * 12,
        "0x" + "00" * 12 + TOKEN[2:],
        TOKEN[:-1] + "３",
        "treasury.eth",
        f"{TOKEN};{WALLET}",
    ],
)
def test_an_address_of_the_chain_is_twenty_bytes_with_a_right_checksum(name: str, value: str) -> None:
    _refusal(name, value)


@pytest.mark.parametrize("written", [TOKEN, TOKEN.lower(), "0x" + TOKEN[2:].upper()])
def test_whatever_its_case_the_token_does_not_receive_payments(written: str) -> None:
    for token, treasury in ((TOKEN, written), (written, TOKEN)):
        with pytest.raises(ConfigurationError) as refused:
            load({"USDC_TOKEN_ADDRESS": token, "TREASURY_ADDRESS": treasury})
        assert refused.value.setting == "TREASURY_ADDRESS"


# -- numbers


@pytest.mark.slow(but="each value")
@pytest.mark.parametrize("name", [*NUMBERS, "SYSTEM_TENANT_REVENUE_SHARE"])
@pytest.mark.parametrize(
    "value",
    ["1e0", "1_0", "+5", "0x5", "0b1", "５", "٥", "²", "1,5", "1 0", "5%", "nan", "NaN", "inf", "-inf", "Infinity",
     "true", "None", "5s", "1/2", "--1", "", "9" * 400],
)  # fmt: skip
def test_a_number_is_written_in_plain_digits(name: str, value: str) -> None:
    if value == "":
        assert load({name: value}) == load({})
    else:
        _refusal(name, value)


@pytest.mark.parametrize("name", [name for name in NUMBERS if name not in FRACTIONAL])
def test_a_whole_number_has_no_fraction(name: str) -> None:
    _refusal(name, "5.0")


@pytest.mark.parametrize(
    ("written", "share"), [("0.750", "0.750"), (".75", "0.75"), ("1.", "1"), ("1.000", "1"), ("00.5", "0.5")]
)
def test_a_share_is_an_exact_decimal(written: str, share: str) -> None:
    assert load({"SYSTEM_TENANT_REVENUE_SHARE": written}).system_tenant_revenue_share == Decimal(share)


def test_ports_are_ports() -> None:
    for name in ("API_PORT", "WORKER_HEALTH_PORT"):
        _refusal(name, "65536")
        _refusal(name, "-1")
        _refusal(name, "80:80")
        _refusal(name, ":80")


def test_a_path_in_the_home_folder_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load({"RECONCILIATION_DIR": "~/books"}).reconciliation_dir == tmp_path / "books"
    _refusal("SCHEDULES_FILE", "~nobody-has-this-name/schedules.yaml")


# -- names


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("CHAIN_RPC_URL", "CHAIN_RPC_URLS"),
        ("CHAIN_RPCS_URLS", "CHAIN_RPC_URLS"),
        ("chain_rpc_urls", "CHAIN_RPC_URLS"),
        ("CHAIN_RPC", "CHAIN_RPC_URLS"),
        ("MIN_CONFIRMATION", "MIN_CONFIRMATIONS"),
        ("MINCONFIRMATIONS", "MIN_CONFIRMATIONS"),
        ("MIN_CONFRIMATIONS", "MIN_CONFIRMATIONS"),
        ("TREASURY_ADDR", "TREASURY_ADDRESS"),
        ("TREASURY_ADRESS", "TREASURY_ADDRESS"),
        ("SETTLE_TREASURY_ADDRESS", "TREASURY_ADDRESS"),
        ("TRUSTED_PROXY", "TRUSTED_PROXIES"),
        ("OPERATOR_WALLET", "OPERATOR_WALLETS"),
        ("LOGLEVEL", "LOG_LEVEL"),
        ("TEMPORAL_ADRESS", "TEMPORAL_ADDRESS"),
        ("SYSTEM_TENANT_REVENUE_SHARES", "SYSTEM_TENANT_REVENUE_SHARE"),
        ("CHAIN-ID", "CHAIN_ID"),
    ],
)
def test_a_name_that_is_nearly_a_settings_gets_one_line(written: str, meant: str) -> None:
    [line] = name_warnings({written: SECRET, "PATH": "/bin"})
    assert line.startswith(written)
    assert meant in line
    assert SECRET not in line


def test_names_of_other_programs_are_nobodys_business() -> None:
    others = """
        PATH HOME LANG LC_ALL PWD SHELL TERM USER LOGNAME TMPDIR TZ EDITOR HOSTNAME PORT HOST APP_PORT
        APP_HOST APP_URL API_KEY API_TOKEN PGHOST PGPORT PGUSER PGPASSWORD POSTGRES_PASSWORD POSTGRES_URL
        TEST_DATABASE_URL REDIS_URL LOG_FILE DEBUG CI NODE_ENV NO_PROXY HTTP_PROXY HTTPS_PROXY http_proxy
        https_proxy no_proxy PYTHONPATH VIRTUAL_ENV SSH_AUTH_SOCK DISPLAY XDG_RUNTIME_DIR CHAIN TOKEN
        ADDRESS TEMPORAL_VERSION_CHECK_DISABLED TEMPORAL_GRPC_META_AUTHORIZATION SETTLE_NODE_MODULES
        DEV_WALLET_KEYS SETTLE_APP_PASSWORD SETTLE_SERVICE_PASSWORD GITHUB_TOKEN GITHUB_API_URL
        KUBERNETES_SERVICE_HOST KUBERNETES_SERVICE_PORT DATABASE_HOST DATABASE_USER
    """
    assert name_warnings(dict.fromkeys([*others.split(), *NAMES, "TEMPORAL_ADDRESS", "TEMPORAL_API_KEY"], "x")) == []


# -- files


def test_a_file_is_read_with_marks_quotes_exports_and_line_ends_of_every_system(tmp_path: Path) -> None:
    path = tmp_path / "settings.env"
    path.write_bytes(
        "\ufeffCHAIN_ID=1\r\nexport MIN_CONFIRMATIONS='2'\r\n\r\n# a comment\r\nPLATFORM_NAME=\"Ünser # Laden\"\r\n"
        "LOG_LEVEL = DEBUG # said why\r\nTREASURY_ADDRESS=\r\nCHAIN_ID=3".encode()
    )
    assert read_env_file(path) == {
        "CHAIN_ID": "3",
        "MIN_CONFIRMATIONS": "2",
        "PLATFORM_NAME": "Ünser # Laden",
        "LOG_LEVEL": "DEBUG",
        "TREASURY_ADDRESS": "",
    }


@pytest.mark.parametrize(
    "line", [f"DATABASE_URL {SECRET}", f"DATABASE_URL: {SECRET}", "CHAIN_ID", f'DATABASE_URL="{SECRET}', f"={SECRET}",
             f"DATABASE_URL='{SECRET}' and more"]
)  # fmt: skip
def test_a_line_of_a_file_that_is_no_setting_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "settings.env"
    path.write_text(f"\nCHAIN_ID=1\n\n{line}\nLOG_LEVEL=INFO\n")
    with pytest.raises(ConfigurationError, match="line 4 ") as refused:
        environment(path)
    assert SECRET not in refused.value.message


def test_several_lines_in_quotes_are_not_several_nodes(tmp_path: Path) -> None:
    path = tmp_path / "settings.env"
    path.write_text(f'CHAIN_RPC_URLS="{NODE}\n{OTHER}"\n')
    _refusal("CHAIN_RPC_URLS", read_env_file(path)["CHAIN_RPC_URLS"])


AWKWARD = ("a b", "a #b", "#a", "'a'", '"a"', "a'b", 'a"b', "\\", "a\\", "'", '"', " a", "a ", "$HOME", "${X}",
           "a=b", "%41", "ü", "a\\'b", "\\n")  # fmt: skip


@pytest.mark.parametrize("value", AWKWARD)
def test_what_is_written_to_a_file_is_read_back(tmp_path: Path, value: str) -> None:
    path = tmp_path / "env"
    path.write_text(f"CHAIN_ID=1\n{env_file_line('PLATFORM_NAME', value)}\nLOG_LEVEL=INFO\n", encoding="utf-8")
    assert read_env_file(path) == {"CHAIN_ID": "1", "PLATFORM_NAME": value, "LOG_LEVEL": "INFO"}


@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=40))
def test_every_printable_value_is_read_back(value: str) -> None:
    from io import StringIO

    from dotenv import dotenv_values

    assert dotenv_values(stream=StringIO(env_file_line("NAME", value) + "\n"), interpolate=False) == {"NAME": value}


def test_an_ordinary_value_is_written_without_quotation_marks() -> None:
    assert env_file_line("DATABASE_URL", POSTGRES) == f"DATABASE_URL={POSTGRES}"
    assert env_file_line("SCHEDULES_FILE", "/a folder/x%20.yaml") == "SCHEDULES_FILE=/a folder/x%20.yaml"
