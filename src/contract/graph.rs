//! A schema as a graph of sub-schemas: what is applied to a value itself, and what to its children.
//!
//! Refuses what the validator could not bound or would have to fetch: references that leave the
//! schema or come back to the same value, nested `$id`s, dynamic references, other dialects.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::schema::SchemaError;

/// Most JSON values in a schema: 16 KiB of short words are fewer.
const VALUES_MAX: usize = 4096;
/// Most sub-schemas.
const NODES_MAX: usize = 1024;
/// Most regular expressions; each is a few KiB when compiled.
const PATTERNS_MAX: usize = 32;
/// Longest way from a sub-schema to one that it applies to the same value, and so on. With the
/// depth of values it bounds the stack of a check.
const REACH_MAX: usize = 16;
/// Bytes of a regular expression that cost as much as one more keyword.
const PATTERN_BYTES: usize = 4;
/// How often what is applied to the same value is looked at where a sub-schema asks what was left
/// unevaluated.
const UNEVALUATED: u64 = 3;
/// Dialects that are understood, without `#` at the end.
const DIALECTS: &[&str] = &[
    "https://json-schema.org/draft/2020-12/schema",
    "https://json-schema.org/draft/2019-09/schema",
    "http://json-schema.org/draft-07/schema",
];

/// A sub-schema.
#[derive(Debug, Default)]
pub(super) struct Node {
    /// Work on the value itself.
    pub(super) own: u64,
    /// How often `same` is applied.
    pub(super) times: u64,
    /// Applied to the same value.
    pub(super) same: Vec<usize>,
    /// One of these is applied to a member of an object.
    pub(super) named: Vec<usize>,
    /// All of these may be, with what it costs to find out.
    pub(super) members: Vec<(usize, u64)>,
    /// One of these is applied to an item of an array.
    pub(super) placed: Vec<usize>,
    /// All of these may be.
    pub(super) items: Vec<usize>,
}

/// All sub-schemas, the root first.
#[derive(Debug)]
pub(super) struct Graph {
    pub(super) nodes: Vec<Node>,
    /// In an order in which those that a node applies to the same value come before it.
    pub(super) order: Vec<usize>,
    /// Whether `anyOf` or `oneOf` stands anywhere.
    pub(super) branches: bool,
}

impl Graph {
    pub(super) fn of(root: &Value) -> Result<Self, SchemaError> {
        if values(root) > VALUES_MAX {
            let text = format!("a schema has at most {VALUES_MAX} values");
            return Err(SchemaError::new("", text));
        }
        let mut walk = Walk {
            root,
            places: HashMap::new(),
            anchors: HashMap::new(),
            nodes: Vec::new(),
            references: Vec::new(),
            patterns: 0,
            branches: false,
        };
        walk.visit(root, String::new())?;
        walk.resolve()?;
        let mut graph = Self {
            nodes: walk.nodes,
            order: Vec::new(),
            branches: walk.branches,
        };
        graph.sort(&walk.places)?;
        Ok(graph)
    }

    /// Orders the nodes; a circle, or too long a way, is an error.
    fn sort(&mut self, places: &HashMap<String, usize>) -> Result<(), SchemaError> {
        let at = |node: usize| {
            let place = places.iter().find(|(_, place)| **place == node);
            place
                .map(|(pointer, _)| pointer.clone())
                .unwrap_or_default()
        };
        // 0: not seen; otherwise its reach and one, or `usize::MAX` while it is looked at.
        let mut reach = vec![0_usize; self.nodes.len()];
        for start in 0..self.nodes.len() {
            if reach[start] != 0 {
                continue;
            }
            reach[start] = usize::MAX;
            let mut stack = vec![(start, 0)];
            while let Some((node, next)) = stack.pop() {
                if let Some(below) = self.nodes[node].same.get(next).copied() {
                    stack.push((node, next + 1));
                    match reach[below] {
                        0 => {
                            reach[below] = usize::MAX;
                            stack.push((below, 0));
                        }
                        usize::MAX => {
                            let text =
                                "its references come back to the same value: they would never end";
                            return Err(SchemaError::new(at(below), text));
                        }
                        _ => {}
                    }
                    continue;
                }
                let below = self.nodes[node].same.iter().map(|below| reach[*below]);
                let own = 1 + below.max().unwrap_or(0);
                if own > REACH_MAX {
                    let text = format!(
                        "applies more than {REACH_MAX} schemas to one value, one inside the other"
                    );
                    return Err(SchemaError::new(at(node), text));
                }
                reach[node] = own;
                self.order.push(node);
            }
        }
        Ok(())
    }
}

/// How sub-schemas stand in a keyword.
#[derive(Clone, Copy)]
enum Shape {
    One,
    List,
    Map,
    /// A list in older dialects, else one.
    OneOrList,
    /// A map whose lists are no schemas.
    SomeOfMap,
}

/// What a keyword's sub-schemas are applied to.
#[derive(Clone, Copy)]
enum To {
    Same,
    Named,
    Members,
    Matching,
    Placed,
    Items,
    /// Nothing, unless somebody refers to it.
    Nothing,
}

const KEYWORDS: &[(&str, Shape, To)] = &[
    ("allOf", Shape::List, To::Same),
    ("anyOf", Shape::List, To::Same),
    ("oneOf", Shape::List, To::Same),
    ("not", Shape::One, To::Same),
    ("if", Shape::One, To::Same),
    ("then", Shape::One, To::Same),
    ("else", Shape::One, To::Same),
    ("dependentSchemas", Shape::Map, To::Same),
    ("dependencies", Shape::SomeOfMap, To::Same),
    ("properties", Shape::Map, To::Named),
    ("patternProperties", Shape::Map, To::Matching),
    ("additionalProperties", Shape::One, To::Members),
    ("unevaluatedProperties", Shape::One, To::Members),
    ("propertyNames", Shape::One, To::Members),
    ("prefixItems", Shape::List, To::Placed),
    ("items", Shape::OneOrList, To::Items),
    ("additionalItems", Shape::One, To::Items),
    ("unevaluatedItems", Shape::One, To::Items),
    ("contains", Shape::One, To::Items),
    ("$defs", Shape::Map, To::Nothing),
    ("definitions", Shape::Map, To::Nothing),
];

/// A reference: who refers, to what, and where it stands.
type Reference = (usize, String, String);

struct Walk<'a> {
    root: &'a Value,
    /// Nodes by their JSON pointer.
    places: HashMap<String, usize>,
    anchors: HashMap<String, usize>,
    nodes: Vec<Node>,
    references: Vec<Reference>,
    patterns: usize,
    branches: bool,
}

impl Walk<'_> {
    /// Adds a sub-schema and all inside it. Recursion ends with the depth of the schema.
    fn visit(&mut self, schema: &Value, at: String) -> Result<usize, SchemaError> {
        if let Some(known) = self.places.get(&at) {
            return Ok(*known);
        }
        if self.nodes.len() >= NODES_MAX {
            let text = format!("a schema has at most {NODES_MAX} sub-schemas");
            return Err(SchemaError::new(at, text));
        }
        let node = self.nodes.len();
        self.places.insert(at.clone(), node);
        self.nodes.push(Node {
            own: 1,
            times: 1,
            ..Node::default()
        });
        match schema {
            Value::Bool(_) => {}
            Value::Object(keywords) => self.keywords(node, keywords, &at)?,
            Value::Null | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                return Err(SchemaError::new(at, "a schema is an object or a boolean"));
            }
        }
        Ok(node)
    }

    fn keywords(
        &mut self,
        node: usize,
        keywords: &Map<String, Value>,
        at: &str,
    ) -> Result<(), SchemaError> {
        for (keyword, value) in keywords {
            let here = join(at, keyword);
            self.own_words(node, (keyword, value), at, &here)?;
            let known = KEYWORDS.iter().find(|(name, ..)| name == keyword);
            let Some((_, shape, to)) = known.copied() else {
                self.nodes[node].own += values(value) as u64;
                continue;
            };
            if keyword.starts_with("unevaluated") {
                self.nodes[node].times = UNEVALUATED;
            }
            self.below(node, (value, shape, to), &here)?;
        }
        Ok(())
    }

    /// The sub-schemas of a keyword.
    fn below(
        &mut self,
        node: usize,
        (value, shape, to): (&Value, Shape, To),
        here: &str,
    ) -> Result<(), SchemaError> {
        match (shape, value) {
            (Shape::Map | Shape::SomeOfMap, Value::Object(map)) => {
                self.nodes[node].own += map.len() as u64;
                for (name, schema) in map {
                    if matches!(shape, Shape::SomeOfMap) && schema.is_array() {
                        continue;
                    }
                    let place = join(here, name);
                    if matches!(to, To::Matching) {
                        self.pattern(&place)?;
                    }
                    let below = self.visit(schema, place)?;
                    self.link(node, below, to, name.len());
                }
            }
            (Shape::List | Shape::OneOrList, Value::Array(list)) => {
                let to = if matches!(shape, Shape::OneOrList) {
                    To::Placed
                } else {
                    to
                };
                for (number, schema) in list.iter().enumerate() {
                    let below = self.visit(schema, join(here, &number.to_string()))?;
                    self.link(node, below, to, 0);
                }
            }
            (Shape::One | Shape::OneOrList, schema) => {
                let below = self.visit(schema, here.to_owned())?;
                self.link(node, below, to, 0);
            }
            // The dialect's own schema says what is wrong with it.
            (Shape::Map | Shape::SomeOfMap | Shape::List, _) => {}
        }
        Ok(())
    }

    fn link(&mut self, node: usize, below: usize, to: To, name: usize) {
        let node = &mut self.nodes[node];
        match to {
            To::Same => node.same.push(below),
            To::Named => node.named.push(below),
            To::Members => node.members.push((below, 0)),
            To::Matching => node
                .members
                .push((below, 1 + (name / PATTERN_BYTES) as u64)),
            To::Placed => node.placed.push(below),
            To::Items => node.items.push(below),
            To::Nothing => {}
        }
    }

    fn pattern(&mut self, at: &str) -> Result<(), SchemaError> {
        self.patterns += 1;
        if self.patterns > PATTERNS_MAX {
            let text = format!("a schema has at most {PATTERNS_MAX} regular expressions");
            return Err(SchemaError::new(at, text));
        }
        Ok(())
    }

    /// Keywords that are more than a rule about a value.
    fn own_words(
        &mut self,
        node: usize,
        (keyword, value): (&str, &Value),
        at: &str,
        here: &str,
    ) -> Result<(), SchemaError> {
        let text = value.as_str().unwrap_or_default();
        match keyword {
            "$ref" => self
                .references
                .push((node, text.to_owned(), here.to_owned())),
            "$anchor" => drop(self.anchors.insert(text.to_owned(), node)),
            "$dynamicRef" | "$recursiveRef" => {
                let text = "dynamic references are not taken: use $ref";
                return Err(SchemaError::new(here, text));
            }
            "$id" | "id" if !at.is_empty() && value.is_string() => {
                let text = "only the root has an $id: name this with $anchor, or by its place";
                return Err(SchemaError::new(here, text));
            }
            "$schema" if !DIALECTS.contains(&text.trim_end_matches('#')) => {
                let text = format!(
                    "not a dialect that is understood: leave it out for 2020-12, or name one of {}",
                    DIALECTS.join(", ")
                );
                return Err(SchemaError::new(here, text));
            }
            "anyOf" | "oneOf" => self.branches = true,
            "pattern" => {
                self.nodes[node].own += (text.len() / PATTERN_BYTES) as u64;
                self.pattern(here)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Links references to what they name; that may bring more of them.
    fn resolve(&mut self) -> Result<(), SchemaError> {
        while let Some((node, to, here)) = self.references.pop() {
            let wrong = |text: String| SchemaError::new(here.clone(), text);
            let Some(fragment) = to.strip_prefix('#') else {
                return Err(wrong(format!(
                    "{to:?} is outside the schema and never fetched: copy it into $defs and write #/$defs/NAME"
                )));
            };
            let unknown = || wrong(format!("{to:?} names nothing in this schema"));
            let below = if fragment.is_empty() {
                0
            } else if fragment.starts_with('/') {
                let pointer = decoded(fragment).ok_or_else(unknown)?;
                let schema = self.root.pointer(&pointer).ok_or_else(unknown)?;
                // The same place may be written in two ways; it is one node.
                self.visit(schema, pointer)?
            } else {
                *self.anchors.get(fragment).ok_or_else(unknown)?
            };
            self.nodes[node].same.push(below);
        }
        Ok(())
    }
}

/// JSON values in a value, itself among them.
pub(super) fn values(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(values).sum(),
        Value::Object(members) => members.values().map(values).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

fn join(at: &str, name: &str) -> String {
    format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"))
}

/// A URI's fragment without its percent signs.
fn decoded(fragment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(fragment.len());
    let mut rest = fragment.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let (high, low) = (digit(rest.next())?, digit(rest.next())?);
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(bytes).ok()
}
