"""Jinja's sandbox: what published chat templates use works, and Python objects are out of reach."""

from __future__ import annotations

import datetime

import pytest

from ollama_nb.errors import TemplateError
from ollama_nb.template.jinja import render


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ x | tojson }}", '{"b": [1, 2.5, null, true], "a": "é<>&\'"}'),
        ("{{ x | tojson(indent=1) }}", '{\n "b": [\n  1,\n  2.5,\n  null,\n  true\n ],\n "a": "é<>&\'"\n}'),
        ("{{ x | tojson(separators=(',', ':'), sort_keys=true) }}", '{"a":"é<>&\'","b":[1,2.5,null,true]}'),
        ("{{ 'é' | tojson(ensure_ascii=True) }}", '"\\u00e9"'),
        ("{% for i in [1,2,3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "13"),
        ("{% for i in [1,2,3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
        ("a{% generation %}b{{ 1 }}{% endgeneration %}c", "ab1c"),
        ("{% set ns = namespace(n=0) %}{% for i in [1,2] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "3"),
        ("  {% if true %}\nx\n  {% endif %}\ny", "x\ny"),
        ("{{ x.a.split('<')[0] }}{{ x.missing }}{{ 'a,b'.split(',') | join('+') }}", "éa+b"),
        ("{%- macro m(v) -%}<{{ v }}>{%- endmacro -%}{{ m(1) }}", "<1>"),
        ("{{ '<b>' }}", "<b>"),
        ("{{ (x.items() | list)[0][0] }}", "b"),
        ("{{ 'ab' * 3 }}{{ 2 * 3 }}{{ 2 ** 3 }}", "ababab68"),
        ("{{ [1, 2] + [3] }}{{ 'a' + 'b' }}{{ 'a' + x.missing + none }}{{ none + 'b' }}", "[1, 2, 3]abab"),
        ("{{ x.missing.deeper.still }}{% for i in x.missing %}{{ i }}{% endfor %}", ""),
        ("{% set l = [1] %}{% set _ = l.append(2) %}{{ l }}{{ l.pop() }}{{ l }}", "[1, 2]2[1]"),
        ("{{ x.b | select('float') | map('string') | tojson }}", '["2.5"]'),
        ("{{ '\"' | safe ~ '\"' }}{{ x | tojson | safe ~ '<' }}", '""{"b": [1, 2.5, null, true], "a": "é<>&\'"}<'),
        ("{{ [{'r': 'u'}, {'r': 'a'}] | selectattr('r', 'equalto', 'a') | list | length }}", "1"),
        ("{{ [{'r': 'u'}, {'t': 1}] | rejectattr('t', 'defined') | map(attribute='r') | join }}", "u"),
        ("{% for k, v in x | items %}{{ k }}{% endfor %}{% for k, v in x | dictsort %}{{ k }}{% endfor %}", "baab"),
        ("{{ ' a b '.strip().upper().replace('A', 'c').startswith('c') }}{{ 'x:y'.rsplit(':')[-1] }}", "Truey"),
        ("{{ 'ab'[::-1] }}{{ 'abc'[1:] }}{{ 'a' in 'ab' }}{{ 'b' not in x }}", "babcTrueFalse"),
        ("{{ 'a' if x.a is string and x is mapping and x.b is sequence else 'b' }}", "a"),
        ("{{ 'x' | default('y') }}{{ missing | default('y') }}{{ none | default('z', true) }}", "xyz"),
        (
            "{{ 'one two' | title }}{{ ' x ' | trim }}{{ [3, 1] | sort | first }}{{ 'a\nb' | indent(1) }}",
            "One Twox1a\n b",
        ),
        ("{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}b{% endcall %}", "b"),
    ],
)
def test_features_that_chat_templates_use(template: str, expected: str) -> None:
    assert render(template, {"x": {"b": [1, 2.5, None, True], "a": "é<>&'"}}) == expected


def test_date() -> None:
    assert render("{{ strftime_now('%Y') }}", {}) in {str(datetime.date.today().year + d) for d in (-1, 0)}


def test_a_template_can_reject_a_conversation() -> None:
    with pytest.raises(TemplateError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}", {})


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% if x %}", "line 1"),
        ("a\n{% foo %}", "line 2"),
        ("{{ 1 / 0 }}", "division"),
        ("{{ 'a' + 1 }}", "chat template"),
        ("{{ x.y() }}", "undefined"),
        ("{{ 'a'.encode('rot13') }}", "unsafe"),
        ("{{ x + 1 }}", "chat template"),
        ("{{ [0] * 200000000 }}", "too long"),
        ("{{ 'a' * 1000000000 }}", "too long"),
        ("{{ 10 ** 100000000 }}", "too large"),
        ("{% for i in range(100000) %}{{ 'a' * 1000 }}{% endfor %}", "too long"),
        ("{{ range(100000000) }}", "too big|Range"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "too deeply"),
        ("x" * (2 << 20), "at most"),
        ("{% include 'x' %}", "loader"),
        ("{% import 'os' as o %}", "loader"),
    ],
)
def test_failures_are_template_errors(template: str, words: str) -> None:
    with pytest.raises(TemplateError, match=words):
        render(template, {})


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ ''|attr('__cla' ~ 'ss__') }}",
    "{{ x.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ strftime_now.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ '{0.__class__}'.format(x) }}",
    "{{ ['{0.__class__.__mro__}'] | map('format', x) | join }}",
    "{% set f = '{0.__class__}'.format %}{{ f(x) }}",
    "{% set f = ('{0.__class__}'|attr('format')) %}{{ f(x) }}",
    "{{ '%s' | format(x.__class__) }}",
    "{{ x.update({'a': 1}) }}",
    "{{ [].append(1) }}",
    "{{ x.pop('a') }}",
    "{{ (x|attr('__class__')) }}",
    "{{ x | map(attribute='__class__') | list }}",
    "{{ [x] | map(attribute='__class__') | first }}",
    "{{ [x] | groupby('__class__') }}",
    "{{ ().__class__.__base__ }}",
    "{{ (1).__class__ }}",
    "{{ dict.__base__ }}",
    "{{ url_for.__globals__ }}",
    "{{ get_flashed_messages.__globals__ }}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_no_way_out_of_the_sandbox(template: str) -> None:
    data = {"a": 1}
    try:
        made = render(template, {"x": data})
    except TemplateError:
        made = ""
    assert not any(word in made for word in ("class '", "<class", "module", "function ", "globals", "uid="))
    assert data == {"a": 1}
