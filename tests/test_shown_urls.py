"""URLs in any text lose what opens them, and nothing else is touched."""

import pickle
import traceback

import pytest

from epistream import errors
from epistream.errors import EpistreamError
from epistream.shown_urls import shown, shown_with

# A text as it is written, and as it may be seen.
TEXTS = {
    "http://h/x.tar?sig=S3C: not found. Do.": "http://h/x.tar?***: not found. Do.",
    "403, message='Forbidden', url='http://h:80/x?sig=S3C'": "403, message='Forbidden', url='http://h:80/x?***'",
    "simplecache::https://u:S3C@h/x?a=S3C&b=S3C, http://h:80/a@b": "simplecache::https://***@h/x?***, http://h:80/a@b",
    "zip://in/ner.tar::https://S3C@h/x.zip?S3C": "zip://in/ner.tar::https://***@h/x.zip?***",
    "URL('http://h/x?sig=S3C')": "URL('http://h/x?***')",
    "['http://h/a?s=S3C', 'http://h/b?s=S3C'].": "['http://h/a?***', 'http://h/b?***'].",
    '{"a":"http://h/x?a=S3C","c":"http://h/d"}': '{"a":"http://h/x?***","c":"http://h/d"}',
    "http://h/x?name='S3C'S3C end": "http://h/x?*** end",
    "http://h/ds/shard-{0..3}.tar?sig=S3C": "http://h/ds/shard-{0..3}.tar?***",
    "http://h/my folder/x.tar?sig=S3C&b=S3C": "http://h/my folder/x.tar?***",
    "http://h/x?a=S3C b=1&c=S3C": "http://h/x?*** b=1&***",
    "http://h/x#S3C.": "http://h/x#***.",
    "HTTPS://H/x?S3C": "HTTPS://H/x?***",
    "s3://KEY:S3C/S3C+S3C@bucket/x": "s3://***@bucket/x",
    "s3://b/k?versionId=S3C.": "s3://b/k?***.",
    "http://u:S3C?S3C@h/x and http://u:S3C@S3C@h/x": "http://***@h/x and http://***@h/x",
    "ftp://u:S3C@h/x, sftp://u@h/x": "ftp://***@h/x, sftp://***@h/x",
    "http://[::1]:80/x?S3C": "http://[::1]:80/x?***",
    "kept as http%3A%2F%2Fu%3AS3C%40h%2Fx%3Fsig%3DS3C": "kept as http%3A%2F%2F***%40h%2Fx%3F***",
    "http%253A%252F%252Fh%252Fx%253Fsig%253DS3C": "http%253A%252F%252Fh%252Fx%253F***",
    "retries exceeded with url: /x?sig=S3C (Caused by": "retries exceeded with url: /x?*** (Caused by",
    "<Headers('Host': 'h', 'Authorization': 'Basic S3C')>": "<Headers('Host': 'h', 'Authorization': ***)>",
    "Authorization: Bearer S3C": "Authorization: ***",
    "DefaultEndpointsProtocol=https;AccountKey=S3C==;E=1": "DefaultEndpointsProtocol=https;AccountKey=***;E=1",
    "X-Amz-Credential=S3C/2026/s3": "X-Amz-Credential=***",
}
PLAIN = (
    "/data/what?.tar and /data/a@b:c@d?x=1",
    "a?b=c.tar",
    "../sig=3/x@y.hdf5",
    "file:///data/a?b=c@d.tar",
    "http://host:8080/a@b: x. http://h, http://h: found",
    "http://h:{port}/x",
    "s3://bucket/ep_?.hdf5, s3://bucket/a#1.hdf5",
    "hf://datasets/user/name@main/x",
    "abfs://container@account.dfs.core.windows.net/x",
    "//two/slashes@x",
    "https://h/x, wanted 3 == 3 ? yes : no",
    "http://h/ds and /data/a?b=c",
)


@pytest.mark.parametrize("text", TEXTS)
def test_text_with_a_secret_is_shown_without_it(text):
    assert "S3C" in text
    assert shown(text) == TEXTS[text]
    assert shown(shown(text)) == TEXTS[text]


@pytest.mark.parametrize("text", PLAIN)
def test_text_without_a_secret_stays_as_it_is(text):
    assert shown(text) == text


def test_values_of_options_are_taken_out_wherever_they_stand():
    options = {"http": {"client_kwargs": {"headers": {"Authorization": "Bearer S3C"}}}, "s3": {"key": "AKIA", "n": 1}}
    text = "no such bucket for AKIA, header 'Bearer S3C', n=1"
    assert shown_with(text, options) == "no such bucket for ***, header '***', n=1"


ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, EpistreamError)]


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_error_never_holds_a_secret_and_pickles(kind):
    error = kind("http://u:S3C@h/x?sig=S3C: found. Next.")
    for seen in (error, pickle.loads(pickle.dumps(error))):
        assert type(seen) is kind
        assert seen.args == ("http://***@h/x?***: found. Next.",)
        assert str(seen) == seen.args[0]
        assert "S3C" not in repr(seen) + "".join(traceback.format_exception(seen))


@pytest.mark.parametrize(
    "piece", ["a.", "a'", "a=b&", "?", "//", "a://", "url: /", "x@", "x:", "a::b", "%3A%2F%2F", "%40"]
)
@pytest.mark.parametrize("begin", ["", "http://", "http://h ", "http%3A%2F%2F"])
def test_long_text_is_shown_without_a_long_search(piece, begin):
    text = begin + 40_000 * piece + "://x"
    assert shown(shown(text)) == shown(text)
