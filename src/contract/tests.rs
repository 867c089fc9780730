use serde_json::{Value, json};

use super::*;
use crate::domain::Reason;
use crate::pb;
use crate::pb::part::Content;

fn contract(input: &Value) -> Contract {
    Contract::of(&pb::Skill {
        input_schema: input.to_string(),
        ..Default::default()
    })
    .unwrap()
}

fn refused(schema: &Value) -> SchemaError {
    Schema::compile(&schema.to_string()).unwrap_err()
}

fn text(json: &Value, media_type: &str) -> pb::Part {
    pb::Part {
        content: Some(Content::Text(json.to_string())),
        media_type: media_type.into(),
        ..Default::default()
    }
}

fn json_part(json: &Value) -> pb::Part {
    text(json, "application/json")
}

fn data(kind: prost_types::value::Kind) -> pb::Part {
    let value = prost_types::Value { kind: Some(kind) };
    pb::Part {
        content: Some(Content::Data(value)),
        ..Default::default()
    }
}

fn broken(schema: &Value, value: &Value) -> Violation {
    let checked = contract(schema).check(Side::Input, &[json_part(value)], &[]);
    *checked.expect_err(&format!("{schema} takes {value}"))
}

fn order() -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "customer": { "type": "string", "pattern": "^[a-z]+$" },
            "items": {
                "type": "array",
                "minItems": 1,
                "items": { "$ref": "#/$defs/item" },
            },
            "note": { "type": ["string", "null"], "maxLength": 10 },
        },
        "required": ["customer", "items"],
        "additionalProperties": false,
        "$defs": {
            "item": {
                "type": "object",
                "properties": {
                    "price": { "type": "number", "minimum": 0 },
                    "count": { "type": "integer", "enum": [1, 2, 3] },
                },
                "required": ["price"],
            },
        },
    })
}

#[test]
fn what_fits_passes() {
    let schema = contract(&order());
    for value in [
        json!({"customer": "acme", "items": [{"price": 1}]}),
        json!({"customer": "acme", "items": [{"price": 1.5, "count": 2.0}], "note": null}),
    ] {
        assert_eq!(schema.check(Side::Input, &[json_part(&value)], &[]), Ok(()));
    }
}

#[test]
fn a_breach_names_place_rule_and_what_was_expected() {
    let item = json!({"price": 1});
    for (value, pointer, rule, expected) in [
        (json!([]), "", "type", None),
        (json!({"items": [item]}), "", "required", None),
        (
            json!({"customer": "acme", "items": []}),
            "/items",
            "minItems",
            None,
        ),
        (
            json!({"customer": "ACME", "items": [item]}),
            "/customer",
            "pattern",
            Some(r#"{"pattern":"^[a-z]+$","type":"string"}"#),
        ),
        (
            json!({"customer": "acme", "items": [item, {"price": "1"}]}),
            "/items/1/price",
            "type",
            Some(r#"{"minimum":0,"type":"number"}"#),
        ),
        (
            json!({"customer": "acme", "items": [{"price": 1, "count": 7}]}),
            "/items/0/count",
            "enum",
            Some(r#"{"enum":[1,2,3],"type":"integer"}"#),
        ),
        (
            json!({"customer": "acme", "items": [item], "a/b~c": 1}),
            "",
            "additionalProperties",
            None,
        ),
    ] {
        let found = broken(&order(), &value);
        assert_eq!((found.pointer(), found.rule()), (pointer, rule), "{value}");
        if let Some(expected) = expected {
            assert_eq!(found.expected(), expected);
        }
        let fault = found.fault("shop.order");
        assert_eq!(fault.reason, Reason::InputInvalid);
        assert_eq!(fault.field.as_deref(), Some("spec.input[0].text"));
        assert!(fault.text.contains(rule), "{fault}");
        assert!(fault.text.contains("submit it again"), "{fault}");
        let fact = |name| fault.metadata.iter().find(|(key, _)| *key == name);
        assert_eq!(fact("pointer").unwrap().1, pointer);
        assert_eq!(fact("rule").unwrap().1, rule);
        let details = found.details("shop.order").fields;
        assert_eq!(details.len(), fault.metadata.len());
    }
}

#[test]
fn a_schema_that_is_too_long_to_be_told_shrinks_to_the_rule_that_is_broken() {
    let long = "x".repeat(600);
    let schema = json!({"type": "string", "maxLength": 3, "description": long});
    assert_eq!(
        broken(&schema, &json!("1234")).expected(),
        r#"{"maxLength":3}"#
    );
    let schema = json!({"enum": [long, long]});
    let found = broken(&schema, &json!("x"));
    assert!(found.expected().len() <= 512 && found.expected().ends_with('…'));
    // It goes into headers three times.
    assert!(found.sentence("s").len() < 1500);
}

#[test]
fn nothing_of_the_value_is_told_and_several_breaches_are() {
    let secret = "hunter2";
    let value = json!({"customer": secret, "items": secret, "note": secret.repeat(3)});
    let found = broken(&order(), &value);
    let told = found.sentence("shop.order");
    assert!(!told.contains(secret), "{told}");
    for pointer in ["/customer", "/items", "/note"] {
        assert!(told.contains(pointer), "{told}");
    }
}

#[test]
fn only_json_is_checked_and_only_where_there_is_a_schema() {
    use prost_types::value::Kind;
    let schema = contract(&json!({"type": "integer"}));
    let check = |part: &pb::Part, modes: &[&str]| {
        let modes: Vec<String> = modes.iter().map(|mode| (*mode).to_owned()).collect();
        let checked = schema.check(Side::Input, std::slice::from_ref(part), &modes);
        checked.map_err(|broken| broken.rule().to_owned())
    };
    let words = text(&json!("words"), "");
    let fails = |rule: &str| Err(rule.to_owned());
    for (part, modes, found) in [
        (data(Kind::NumberValue(3.0)), &[][..], Ok(())),
        (data(Kind::NumberValue(3.5)), &[], fails("type")),
        (data(Kind::NumberValue(f64::NAN)), &[], fails(RULE_JSON)),
        (data(Kind::StringValue("3".into())), &[], fails("type")),
        (
            text(&json!(3), "application/json; charset=utf-8"),
            &[],
            Ok(()),
        ),
        (
            text(&json!("x"), "application/vnd.x+JSON"),
            &[],
            fails("type"),
        ),
        (words.clone(), &[], Ok(())),
        (words.clone(), &["text/plain", "application/json"], Ok(())),
        (words, &["application/json"], fails(RULE_PART)),
        (
            text(&json!(3), "application/json"),
            &["application/json"],
            Ok(()),
        ),
    ] {
        assert_eq!(check(&part, modes), found, "{part:?} {modes:?}");
    }
    let mut open = json_part(&json!(null));
    open.content = Some(Content::Text("{".into()));
    assert_eq!(check(&open, &[]), fails(RULE_JSON));
    // Every part of it, and the results not at all.
    let parts = [json_part(&json!(1)), json_part(&json!("x"))];
    let found = schema.check(Side::Input, &parts, &[]).unwrap_err();
    assert_eq!(
        found.fault("s").field.as_deref(),
        Some("spec.input[1].text")
    );
    assert_eq!(schema.check(Side::Output, &parts, &[]), Ok(()));
}

#[test]
fn no_schema_costs_no_allocation() {
    let none = Contract::of(&pb::Skill::default()).unwrap();
    assert!(none.is_empty());
    let parts = [json_part(&json!({"a": [1, 2, 3]}))];
    let info = allocation_counter::measure(|| {
        none.check(Side::Input, &parts, &[]).unwrap();
        none.check(Side::Output, &parts, &[]).unwrap();
    });
    assert_eq!(info.count_total, 0);
}

#[test]
fn dialects_differ_and_strange_ones_are_refused() {
    // A sibling of $ref counts since 2019-09 only.
    let schema = |dialect: &str| json!({"$schema": dialect, "properties": {"a": {"$ref": "#/$defs/b", "minLength": 2}}, "$defs": {"b": {}}});
    let value = json!({"a": "x"});
    let seventh = contract(&schema("http://json-schema.org/draft-07/schema#"));
    assert_eq!(
        seventh.check(Side::Input, &[json_part(&value)], &[]),
        Ok(())
    );
    let newest = schema("https://json-schema.org/draft/2020-12/schema");
    assert_eq!(broken(&newest, &value).rule(), "minLength");
    for dialect in [
        "http://json-schema.org/draft-04/schema#",
        "https://evil.example/s",
    ] {
        let wrong = refused(&schema(dialect));
        assert_eq!(wrong.pointer, "/$schema");
    }
}

fn refused_at(table: Vec<(Value, &str, &str)>) {
    for (schema, pointer, word) in table {
        let wrong = refused(&schema);
        assert!(wrong.text.contains(word), "{schema:.200}: {wrong}");
        assert_eq!(wrong.pointer, pointer, "{schema:.200}: {wrong}");
        assert!(wrong.to_string().len() < 1024, "{wrong}");
    }
}

#[test]
fn a_schema_that_names_anything_outside_or_never_ends_is_refused_with_its_place() {
    let dialect = "https://json-schema.org/draft/2020-12/schema";
    let circle = json!({"$defs": {
        "a": {"anyOf": [{"$ref": "#/$defs/b"}]},
        "b": {"not": {"$ref": "#/$defs/a"}},
    }});
    refused_at(vec![
        (
            json!({"$ref": "https://example.com/s.json"}),
            "/$ref",
            "never fetched",
        ),
        (
            json!({"$ref": "file:///etc/passwd"}),
            "/$ref",
            "never fetched",
        ),
        (json!({"$ref": "other.json#/a"}), "/$ref", "never fetched"),
        (
            json!({"items": {"$ref": dialect}}),
            "/items/$ref",
            "never fetched",
        ),
        (json!({"$ref": "#/$defs/none"}), "/$ref", "names nothing"),
        (json!({"$ref": "#none"}), "/$ref", "names nothing"),
        (json!({"$ref": "#/a%zz"}), "/$ref", "names nothing"),
        (json!({"$dynamicRef": "#x"}), "/$dynamicRef", "use $ref"),
        (
            json!({"properties": {"a": {"$id": "https://example.com/"}}}),
            "/properties/a/$id",
            "$anchor",
        ),
        (json!({"$ref": "#"}), "", "never end"),
        (circle, "/$defs/a", "never end"),
        (json!({"type": "strnig"}), "/type", "strnig"),
        (json!({"properties": []}), "/properties", ""),
        (json!({"properties": {"a": 1}}), "/properties/a", "boolean"),
        (json!({"required": "a"}), "/required", ""),
    ]);
}

#[test]
fn what_cannot_be_bounded_is_refused_with_its_place() {
    let deep = format!("{}1{}", r#"{"a":"#.repeat(33), "}".repeat(33));
    let doubling = |most: usize| {
        let mut defs = serde_json::Map::new();
        for number in 0..most {
            let next = json!({"$ref": format!("#/$defs/d{}", number + 1)});
            defs.insert(
                format!("d{number}"),
                json!({"allOf": [next, next, next, next]}),
            );
        }
        defs.insert(format!("d{most}"), json!({"type": "string"}));
        json!({"$ref": "#/$defs/d0", "$defs": defs})
    };
    let chain = |most: usize| {
        let mut schema = json!({"type": "string"});
        for _ in 0..most {
            schema = json!({"not": schema});
        }
        schema
    };
    let patterns = |one: &str, most: usize| {
        let all: Vec<Value> = (0..most)
            .map(|n| json!({"pattern": format!("{one}{n}")}))
            .collect();
        json!({"prefixItems": all})
    };
    refused_at(vec![
        (serde_json::from_str(&deep).unwrap(), "", "32 levels"),
        (doubling(7), "", "too many times"),
        (chain(16), "", "more than 16"),
        (
            patterns("a", 33),
            "/prefixItems/32/pattern",
            "regular expressions",
        ),
        (json!({"pattern": "^(?!x)"}), "/pattern", "lookarounds"),
        (json!({"pattern": "(a)\\1"}), "/pattern", "lookarounds"),
        (
            json!({"pattern": "((a{1,100}){1,100}){1,100}"}),
            "/pattern",
            "64 KiB",
        ),
        (json!({"pattern": "("}), "/pattern", "lookarounds"),
        (json!({"enum": vec![1; 5000]}), "", "4096"),
        (json!({"anyOf": vec![true; 1024]}), "/anyOf/1023", "1024"),
    ]);
    for text in ["{", "3", "null", "[]"] {
        assert!(Schema::compile(text).is_err(), "{text}");
    }
    let large = format!("{{{}}}", " ".repeat(SCHEMA_MAX));
    assert!(Schema::compile(&large).unwrap_err().text.contains("16 KiB"));
    for schema in [doubling(4), chain(14), patterns("a", 32), json!(true)] {
        Schema::compile(&schema.to_string()).expect("within the bounds");
    }
    assert!(Schema::compile("").unwrap().is_none());
}

#[test]
fn a_recursive_schema_is_taken_and_checks_all_of_a_tree() {
    let tree = json!({
        "type": "object",
        "properties": {
            "value": {"type": "integer"},
            "left": {"$ref": "#"},
            "right": {"$anchor": "right", "$ref": "#"},
        },
        "required": ["value"],
    });
    let mut value = json!({"value": 1});
    for _ in 0..28 {
        value = json!({"value": 1, "left": {"value": 2}, "right": value});
    }
    let schema = contract(&tree);
    assert_eq!(schema.check(Side::Input, &[json_part(&value)], &[]), Ok(()));
    for _ in 0..4 {
        value = json!({"value": 1, "right": value});
    }
    assert_eq!(
        broken(&tree, &value).rule(),
        RULE_COST,
        "deeper than any task's"
    );
    let wrong = json!({"value": 1, "left": {"value": 1, "left": {"left": {}}}});
    assert_eq!(broken(&tree, &wrong).pointer(), "/left/left");
}

/// Each level of the value may be tried by either branch, and so on below: 2^depth without a bound.
#[test]
fn work_that_multiplies_with_the_value_is_refused_before_it_begins() {
    let branch = json!({"properties": {"a": {"$ref": "#"}}});
    let schema = json!({"anyOf": [
        {"allOf": [branch, {"required": ["b"]}]},
        {"allOf": [branch, {"required": ["b"]}]},
        {"type": "string"},
    ]});
    let mut value = json!("end");
    for (levels, rule) in [(5, "anyOf"), (5, RULE_SCHEMA)] {
        for _ in 0..levels {
            value = json!({"a": value});
        }
        assert_eq!(broken(&schema, &value).rule(), rule);
    }
    for _ in 0..20 {
        value = json!({"a": value});
    }
    assert_eq!(broken(&schema, &value).rule(), RULE_COST);
    // So is a large value under many rules.
    let rules: Vec<Value> = (0..200).map(|n| json!({"minLength": n})).collect();
    let many = json!({"items": {"allOf": rules}});
    let value = json!(vec!["x".repeat(200); 50_000]);
    assert_eq!(broken(&many, &value).rule(), RULE_COST);
}

/// The deepest check that is let in: it has to fit the stack of any thread.
#[test]
fn the_deepest_check_fits_the_stack() {
    let mut inside = json!({"properties": {"a": {"$ref": "#/$defs/deep"}}});
    for _ in 0..5 {
        inside = json!({"allOf": [{"anyOf": [inside]}]});
    }
    let schema = json!({"$ref": "#/$defs/deep", "$defs": {"deep": inside}});
    let mut value = json!({"a": 1});
    for _ in 0..30 {
        value = json!({"a": value});
    }
    let check = move || contract(&schema).check(Side::Input, &[json_part(&value)], &[]);
    let thread = std::thread::Builder::new().stack_size(1 << 20);
    assert_eq!(thread.spawn(check).unwrap().join().unwrap(), Ok(()));
    // And so has its compilation, however long the chain.
    let mut defs = serde_json::Map::new();
    for number in 0..330 {
        let next = json!({"$ref": format!("#/$defs/{}", number + 1)});
        defs.insert(number.to_string(), json!({"properties": {"a": next}}));
    }
    defs.insert("330".to_owned(), json!(true));
    let schema = json!({"$ref": "#/$defs/0", "$defs": defs}).to_string();
    assert!(schema.len() < SCHEMA_MAX);
    let thread = std::thread::Builder::new().stack_size(1 << 20);
    let compile = move || Schema::compile(&schema).map(|_| ());
    assert_eq!(thread.spawn(compile).unwrap().join().unwrap(), Ok(()));
}

#[test]
fn spelling_does_not_change_the_hash_and_no_schema_has_one_of_its_own() {
    let hash = |input: &str, output: &str| hash_of(input, output).unwrap();
    let one = hash(r#"{"type":"object","a":1}"#, "");
    assert_eq!(one, hash("{ \"a\": 1,\n\"type\": \"object\" }", ""));
    assert_ne!(one, hash("", r#"{"type":"object","a":1}"#));
    assert!(is_nothing(&hash("", "")) && is_nothing(&[]));
    assert!(!is_nothing(&one));
}

#[test]
fn a_large_value_is_told_its_first_breach() {
    let schema = json!({"items": {"type": "string"}});
    let mut value = vec![json!("x"); 20_000];
    value[17_000] = json!(1);
    value[18_000] = json!(1);
    let found = broken(&schema, &json!(value));
    assert_eq!((found.pointer(), found.rule()), ("/17000", "type"));
}
