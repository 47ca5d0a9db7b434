//! From a tree to what it declares, collecting every mistake on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use super::tree::{self, Key, Node, Value};
use super::{Finding, Lines, Manifest};
use crate::pg::Target;
use crate::registry::{
    ColumnFacts, Mutation, SPEC_FIELDS, SUBSCRIPTION_NAME_FORM, Subscription, SubscriptionSpec,
    is_subscription_name,
};
use crate::vocab::{DatasetName, Mode, RoleName, ServiceName, SourceName};

/// The version of the format that this program reads and writes.
pub(super) const API_VERSION: &str = "cadastre/v1";

pub(super) fn parse(text: &str, file: &str) -> Result<Manifest, Vec<Finding>> {
    let finding = |(line, message)| Finding { file: file.to_owned(), line, message };
    let root = tree::read(text).map_err(|wrong| vec![finding(wrong)])?;
    let mut parser = Parser { wrong: Vec::new(), lines: Lines::default() };
    let declared = parser.manifest(&root);
    if parser.wrong.is_empty() {
        return Ok(Manifest { file: file.to_owned(), declared, lines: parser.lines });
    }
    parser.wrong.sort();
    parser.wrong.dedup();
    Err(parser.wrong.into_iter().map(finding).collect())
}

/// The fields of one object by name, those that are null left out.
type Fields<'a> = BTreeMap<&'a str, (u64, &'a Node)>;

/// A section's key, the kind of its objects, and what reads one of them.
type Section = (&'static str, &'static str, fn(&mut Parser, &Key, &Node) -> Option<Mutation>);

struct Parser {
    /// Lines and messages.
    wrong: Vec<(u64, String)>,
    lines: Lines,
}

impl Parser {
    fn manifest(&mut self, root: &Node) -> Vec<Mutation> {
        let known = ["apiVersion", "sources", "services", "datasets", "subscriptions"];
        let mut declared = Vec::new();
        let Some(fields) = self.fields("the manifest", root.line, root, &known) else {
            return declared;
        };
        match fields.get("apiVersion") {
            Some((_, Node { value: Value::Text(version), .. })) if version == API_VERSION => {}
            Some((line, _)) => self.report(*line, format!("apiVersion: expected {API_VERSION}")),
            None => self.report(1, format!("apiVersion is missing: expected {API_VERSION}")),
        }
        let sections: [Section; 4] = [
            ("sources", "source", Self::source),
            ("services", "service", Self::service),
            ("datasets", "dataset", Self::dataset),
            ("subscriptions", "subscription", Self::subscription),
        ];
        for (section, kind, read) in sections {
            let Some((line, node)) = fields.get(section) else { continue };
            let mut entries = self.entries(section, *line, node);
            entries.sort_by(|(a, _), (b, _)| a.text.cmp(&b.text));
            for (key, node) in entries {
                self.lines.set(kind, &key.text, &[], key.line);
                declared.extend(read(self, key, node));
            }
        }
        declared
    }

    fn source(&mut self, key: &Key, node: &Node) -> Option<Mutation> {
        let what = format!("source \"{}\"", key.text);
        let name: Option<SourceName> = self.parsed(key.line, &key.text);
        let fields = self.fields(&what, key.line, node, &["url"])?;
        let expected = "a connection string such as \"${SHOP_DATABASE_URL}\"";
        self.required(&what, key.line, &fields, "url", expected);
        let (line, url) = self.text(&what, &fields, "url")?;
        if let Err(error) = Target::check_template(&url) {
            self.report(line, format!("url of {what}: {error}"));
        }
        Some(Mutation::SourcePut { name: name?, url })
    }

    fn service(&mut self, key: &Key, node: &Node) -> Option<Mutation> {
        let what = format!("service \"{}\"", key.text);
        let name: Option<ServiceName> = self.parsed(key.line, &key.text);
        let fields = self.fields(&what, key.line, node, &["team", "contact", "roles"])?;
        let team = self.text(&what, &fields, "team").map(|(_, team)| team);
        let contact = self.text(&what, &fields, "contact").map(|(_, contact)| contact);
        let mut roles = BTreeMap::new();
        if let Some((line, node)) = fields.get("roles") {
            for (source, node) in self.entries(&format!("roles of {what}"), *line, node) {
                self.lines.set("service", &key.text, &["roles", &source.text], source.line);
                let in_source = format!("roles of {what} in source \"{}\"", source.text);
                let mut names: BTreeSet<RoleName> = BTreeSet::new();
                for (line, role) in self.texts(&in_source, source.line, node) {
                    self.lines.set("service", &key.text, &["roles", &source.text, &role], line);
                    names.extend(self.parsed::<RoleName>(line, &role));
                }
                if let Some(source) = self.parsed::<SourceName>(source.line, &source.text)
                    && !names.is_empty()
                {
                    roles.insert(source, names.into_iter().collect());
                }
            }
        }
        Some(Mutation::ServicePut { name: name?, team, contact, roles })
    }

    fn dataset(&mut self, key: &Key, node: &Node) -> Option<Mutation> {
        let what = format!("dataset \"{}\"", key.text);
        let name: Option<DatasetName> = self.parsed(key.line, &key.text);
        let known = ["owner", "mode", "description", "tags", "columns", "derivedFrom"];
        let fields = self.fields(&what, key.line, node, &known)?;
        self.required(&what, key.line, &fields, "owner", "the name of one service");
        let owner: Option<ServiceName> =
            self.text(&what, &fields, "owner").and_then(|(line, owner)| self.parsed(line, &owner));
        if let Some((line, _)) = fields.get("owner") {
            self.lines.set("dataset", &key.text, &["owner"], *line);
        }
        let mode = match self.text(&what, &fields, "mode") {
            Some((line, mode)) => self.parsed(line, &mode),
            None => Some(Mode::Observe),
        };
        let description = self.text(&what, &fields, "description").map(|(_, text)| text);
        let tags = self.set_of_text(&what, &fields, "tags");
        let derived_from = self.set_of_text(&what, &fields, "derivedFrom");
        let mut columns = BTreeMap::new();
        if let Some((line, node)) = fields.get("columns") {
            for (column, node) in self.entries(&format!("columns of {what}"), *line, node) {
                let what = format!("column \"{}\" of {what}", column.text);
                let known = ["classification", "description"];
                let Some(fields) = self.fields(&what, column.line, node, &known) else { continue };
                let mut fact = |name| self.text(&what, &fields, name).map(|(_, text)| text);
                let facts = ColumnFacts {
                    classification: fact("classification"),
                    description: fact("description"),
                };
                columns.insert(column.text.clone(), facts);
            }
        }
        Some(Mutation::DatasetPut {
            name: name?,
            owner: owner?,
            mode: mode?,
            description,
            tags,
            columns,
            derived_from,
        })
    }

    fn subscription(&mut self, key: &Key, node: &Node) -> Option<Mutation> {
        let what = format!("subscription \"{}\"", key.text);
        if !is_subscription_name(&key.text) {
            self.report(
                key.line,
                format!(
                    "invalid subscription name \"{}\": expected {SUBSCRIPTION_NAME_FORM}",
                    key.text
                ),
            );
        }
        let mut known = vec!["service", "datasets"];
        known.extend(SPEC_FIELDS);
        let fields = self.fields(&what, key.line, node, &known)?;
        self.required(&what, key.line, &fields, "service", "the name of one service");
        let service: Option<ServiceName> =
            self.text(&what, &fields, "service").and_then(|(line, name)| self.parsed(line, &name));
        if let Some((line, _)) = fields.get("service") {
            self.lines.set("subscription", &key.text, &["service"], *line);
        }
        let mut datasets: Vec<DatasetName> = Vec::new();
        self.required(&what, key.line, &fields, "datasets", "a list of dataset names");
        if let Some((line, node)) = fields.get("datasets") {
            let listed = self.texts(&format!("datasets of {what}"), *line, node);
            if matches!(&node.value, Value::List(items) if items.is_empty()) {
                self.report(*line, format!("datasets of {what}: expected at least one"));
            }
            for (line, dataset) in listed {
                self.lines.set("subscription", &key.text, &["datasets", &dataset], line);
                let Some(name) = self.parsed::<DatasetName>(line, &dataset) else { continue };
                if let Some(first) = datasets.first().filter(|it| it.source() != name.source()) {
                    let said = format!(
                        "datasets of {what}: {first} and {name} are in different sources, which \
                         have no common order: expected a subscription for each"
                    );
                    self.report(line, said);
                }
                datasets.push(name);
            }
        }
        let spec = self.spec(&what, key.line, &fields);
        let name = key.text.clone();
        Some(Mutation::SubscriptionPut(Subscription { name, service: service?, datasets, spec }))
    }

    /// How it is delivered, as declared; what is wrong with it is reported where it stands.
    fn spec(&mut self, what: &str, line: u64, fields: &Fields<'_>) -> serde_json::Value {
        let mut spec = serde_json::Map::new();
        for name in SPEC_FIELDS {
            let Some((line, node)) = fields.get(name) else { continue };
            self.once_each(&format!("{name} of {what}"), *line, node);
            spec.insert(name.to_owned(), as_json(node));
        }
        let spec = serde_json::Value::Object(spec);
        for error in SubscriptionSpec::parse(&spec).err().unwrap_or_default() {
            let at = match error.path.split_first() {
                Some((first, rest)) => fields
                    .get(first.as_str())
                    .map_or(line, |(line, node)| line_within(*line, node, rest)),
                None => line,
            };
            self.report(at, error.about(what));
        }
        spec
    }

    /// Reports keys that are given twice, at any depth.
    fn once_each(&mut self, what: &str, line: u64, node: &Node) {
        if matches!(node.value, Value::Map(_)) {
            for (key, node) in self.entries(what, line, node) {
                self.once_each(&format!("{} of {what}", key.text), key.line, node);
            }
        }
    }
}

/// The line of what `path` leads to within `node`, or of what contains it.
fn line_within(line: u64, node: &Node, path: &[String]) -> u64 {
    let (Some((first, rest)), Value::Map(entries)) = (path.split_first(), &node.value) else {
        return line;
    };
    let found = entries.iter().find(|(key, _)| key.text == *first);
    found.map_or(line, |(key, node)| line_within(key.line, node, rest))
}

/// Steps that several kinds of objects share.
impl Parser {
    fn report(&mut self, line: u64, message: String) {
        self.wrong.push((line, message));
    }

    /// The entries of a mapping, each key once; none when it is no mapping.
    fn entries<'a>(&mut self, what: &str, line: u64, node: &'a Node) -> Vec<(&'a Key, &'a Node)> {
        let Value::Map(entries) = &node.value else {
            let found = node.value.kind();
            self.report(line, format!("{what}: expected a mapping, found {found}"));
            return Vec::new();
        };
        let mut first: BTreeMap<&str, u64> = BTreeMap::new();
        let mut once = Vec::with_capacity(entries.len());
        for (key, node) in entries {
            if let Some(before) = first.insert(&key.text, key.line) {
                let text = &key.text;
                self.report(
                    key.line,
                    format!(
                        "{what}: \"{text}\" is given twice, first on line {before}: expected once"
                    ),
                );
            } else {
                once.push((key, node));
            }
        }
        once
    }

    /// The fields of an object that has these and no others; `None` when it is no mapping.
    fn fields<'a>(
        &mut self,
        what: &str,
        line: u64,
        node: &'a Node,
        known: &[&'static str],
    ) -> Option<Fields<'a>> {
        let mut fields = Fields::new();
        for (key, node) in self.entries(what, line, node) {
            if !known.contains(&key.text.as_str()) {
                let expected = match known {
                    [] => "expected none".to_owned(),
                    [only] => format!("expected {only}"),
                    _ => format!("expected one of {}", known.join(", ")),
                };
                self.report(key.line, format!("{what}: unknown key \"{}\": {expected}", key.text));
            } else if !matches!(node.value, Value::Null) {
                fields.insert(&key.text, (key.line, node));
            }
        }
        matches!(node.value, Value::Map(_)).then_some(fields)
    }

    fn required(&mut self, what: &str, line: u64, fields: &Fields<'_>, name: &str, expected: &str) {
        if !fields.contains_key(name) {
            self.report(line, format!("{name} of {what} is missing: expected {expected}"));
        }
    }

    /// A field that holds text, with its line.
    fn text(&mut self, what: &str, fields: &Fields<'_>, name: &str) -> Option<(u64, String)> {
        let (line, node) = fields.get(name)?;
        self.as_text(&format!("{name} of {what}"), *line, node).map(|text| (*line, text))
    }

    fn as_text(&mut self, what: &str, line: u64, node: &Node) -> Option<String> {
        match &node.value {
            Value::Text(text) if text.contains('\0') => {
                self.report(line, format!("{what}: expected text without a NUL character"));
            }
            Value::Text(text) => return Some(text.clone()),
            Value::Bool(_) | Value::Number(_) => {
                let found = node.value.kind();
                self.report(
                    line,
                    format!("{what}: expected text, found {found}; put it in quotes"),
                );
            }
            Value::Null | Value::List(_) | Value::Map(_) => {
                let found = node.value.kind();
                self.report(line, format!("{what}: expected text, found {found}"));
            }
        }
        None
    }

    /// The items of a list of texts, with their lines.
    fn texts(&mut self, what: &str, line: u64, node: &Node) -> Vec<(u64, String)> {
        let Value::List(items) = &node.value else {
            let found = node.value.kind();
            self.report(line, format!("{what}: expected a list such as [a, b], found {found}"));
            return Vec::new();
        };
        let mut texts = Vec::with_capacity(items.len());
        for item in items {
            texts.extend(self.as_text(what, item.line, item).map(|text| (item.line, text)));
        }
        texts
    }

    /// A field that holds a list of texts in which order and repetition mean nothing.
    fn set_of_text(&mut self, what: &str, fields: &Fields<'_>, name: &str) -> Vec<String> {
        let Some((line, node)) = fields.get(name) else { return Vec::new() };
        let texts = self.texts(&format!("{name} of {what}"), *line, node);
        let set: BTreeSet<String> = texts.into_iter().map(|(_, text)| text).collect();
        set.into_iter().collect()
    }

    /// A text as what it names; its own error says what was expected.
    fn parsed<T: FromStr<Err: std::fmt::Display>>(&mut self, line: u64, text: &str) -> Option<T> {
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.report(line, error.to_string());
                None
            }
        }
    }
}

fn as_json(node: &Node) -> serde_json::Value {
    match &node.value {
        Value::Null => serde_json::Value::Null,
        Value::Bool(value) => (*value).into(),
        Value::Number(number) => number.clone().into(),
        Value::Text(text) => text.as_str().into(),
        Value::List(items) => items.iter().map(as_json).collect(),
        Value::Map(entries) => {
            entries.iter().map(|(key, node)| (key.text.clone(), as_json(node))).collect()
        }
    }
}
