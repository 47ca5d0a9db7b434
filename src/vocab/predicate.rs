//! A small language that says which rows a subscriber wants: `status = 'paid' and amount >= 100`.
//!
//! ```text
//! or      = and { "or" and }
//! and     = not { "and" not }
//! not     = "not" not | "(" or ")" | test
//! test    = column ( compare value
//!                  | [ "not" ] "in" "(" value { "," value } ")"
//!                  | "is" [ "not" ] "null" )
//! compare = "=" | "<>" | "!=" | "<" | "<=" | ">" | ">="
//! column  = [ "before." | "after." ] ( name | "\"" any "\"" )
//! value   = 'text' | number | true | false
//! ```
//!
//! Words are read in any case; a quote inside a text is doubled. A column without a place is that of
//! the row after the change, of the row before when it was deleted. As in SQL, a comparison with
//! nothing is neither true nor false. This file parses; [`Predicate::holds`] is given the values.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use super::limits;

/// A condition on a change's rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Predicate {
    root: Node,
}

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Or(Vec<Node>),
    And(Vec<Node>),
    Not(Box<Node>),
    Compare(Column, Comparison, Value),
    In(Column, Vec<Value>),
    IsNull(Column),
}

/// A column of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Which row.
    pub side: Side,
    /// Its name.
    pub name: String,
}

/// Which row of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The row as it was.
    Before,
    /// The row as it is.
    After,
    /// As it is, or as it was when it is no more.
    Row,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Debug, Clone, PartialEq)]
enum Value {
    Text(String),
    Number(String),
    Bool(bool),
}

/// What a column holds in one change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Null.
    Null,
    /// A text; also a number that JSON does not hold exactly.
    Text(String),
    /// A number, as it is written.
    Number(String),
    /// True or false.
    Bool(bool),
    /// No such column in this change, no such row, or something that is no single value.
    Nothing,
}

/// Where and why a text is not a predicate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at character {at}: {message}")]
pub struct PredicateError {
    /// The character, from 1.
    pub at: usize,
    /// What was found and what was expected.
    pub message: String,
}

impl Predicate {
    /// Whether the condition holds of a change whose columns `found` looks up.
    pub fn holds(&self, found: &mut dyn FnMut(&Column) -> Found) -> bool {
        self.root.holds(found) == Some(true)
    }
}

impl Node {
    /// True, false, or unknown.
    fn holds(&self, found: &mut dyn FnMut(&Column) -> Found) -> Option<bool> {
        match self {
            Self::Or(nodes) => any(nodes.iter().map(|node| node.holds(found))),
            Self::And(nodes) => {
                any(nodes.iter().map(|node| node.holds(found).map(|holds| !holds))).map(|it| !it)
            }
            Self::Not(node) => node.holds(found).map(|holds| !holds),
            Self::Compare(column, comparison, value) => {
                let order = order(&found(column), value)?;
                Some(comparison.fits(order))
            }
            Self::In(column, values) => {
                let found = found(column);
                any(values.iter().map(|value| Some(order(&found, value)? == Ordering::Equal)))
            }
            Self::IsNull(column) => match found(column) {
                Found::Null => Some(true),
                Found::Nothing => None,
                Found::Text(_) | Found::Number(_) | Found::Bool(_) => Some(false),
            },
        }
    }
}

/// Or, with three values.
fn any(holds: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    let mut all = Some(false);
    for holds in holds {
        match holds {
            Some(true) => return Some(true),
            Some(false) => {}
            None => all = None,
        }
    }
    all
}

impl Comparison {
    fn fits(self, order: Ordering) -> bool {
        match self {
            Self::Equal => order.is_eq(),
            Self::NotEqual => order.is_ne(),
            Self::Less => order.is_lt(),
            Self::LessOrEqual => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::GreaterOrEqual => order.is_ge(),
        }
    }
}

/// How what was found compares with a value; `None` when it does not.
fn order(found: &Found, value: &Value) -> Option<Ordering> {
    match (found, value) {
        (Found::Text(found), Value::Text(value)) => Some(found.as_str().cmp(value)),
        (Found::Bool(found), Value::Bool(value)) => Some(found.cmp(value)),
        // Numbers that JSON does not hold exactly are texts in events.
        (Found::Number(found) | Found::Text(found), Value::Number(value)) => numbers(found, value),
        (
            Found::Null | Found::Nothing | Found::Number(_) | Found::Bool(_) | Found::Text(_),
            Value::Text(_) | Value::Bool(_) | Value::Number(_),
        ) => None,
    }
}

/// Exactly, for what is written without an exponent.
fn numbers(a: &str, b: &str) -> Option<Ordering> {
    match (Decimal::parse(a), Decimal::parse(b)) {
        (Some(a), Some(b)) => Some(a.cmp(&b)),
        _ => a.parse::<f64>().ok()?.partial_cmp(&b.parse::<f64>().ok()?),
    }
}

/// A number by its digits: no zeros at the beginning of the whole or at the end of the fraction.
#[derive(Debug, PartialEq, Eq)]
struct Decimal<'a> {
    negative: bool,
    whole: &'a str,
    fraction: &'a str,
}

impl<'a> Decimal<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (negative, digits) = match text.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, text),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) {
            return None;
        }
        let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
        let zero = whole.is_empty() && fraction.is_empty();
        Some(Self { negative: negative && !zero, whole, fraction })
    }

    fn size(&self, other: &Self) -> Ordering {
        let by_length = self.whole.len().cmp(&other.whole.len());
        by_length
            .then_with(|| self.whole.cmp(other.whole))
            .then_with(|| self.fraction.cmp(other.fraction))
    }
}

impl Ord for Decimal<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self.negative, other.negative) {
            (false, true) => Ordering::Greater,
            (true, false) => Ordering::Less,
            (false, false) => self.size(other),
            (true, true) => other.size(self),
        }
    }
}

impl PartialOrd for Decimal<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// One word, mark or value of the text, and where it begins.
#[derive(Debug, Clone, PartialEq)]
struct Token {
    at: usize,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Word(String),
    /// A name in double quotes.
    Name(String),
    Text(String),
    Number(String),
    Mark(&'static str),
    End,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(word) | Self::Number(word) => write!(f, "{word}"),
            Self::Name(name) => write!(f, "\"{name}\""),
            Self::Text(text) => write!(f, "'{text}'"),
            Self::Mark(mark) => f.write_str(mark),
            Self::End => f.write_str("the end"),
        }
    }
}

const MARKS: [&str; 11] = ["<=", ">=", "<>", "!=", "=", "<", ">", "(", ")", ",", "."];

fn tokens(text: &str) -> Result<Vec<Token>, PredicateError> {
    let characters: Vec<char> = text.chars().collect();
    let (mut tokens, mut at) = (Vec::new(), 0);
    while let Some(&first) = characters.get(at) {
        let begin = at;
        let run = |from: usize, fits: &dyn Fn(char) -> bool| {
            let length = characters.iter().skip(from).take_while(|c| fits(**c)).count();
            let run: String = characters.iter().skip(from).take(length).collect();
            (run, from + length)
        };
        let starts =
            |mark: &&str| mark.chars().enumerate().all(|(i, c)| characters.get(at + i) == Some(&c));
        let number_follows = characters.get(at + 1).is_some_and(char::is_ascii_digit);
        let kind = if first.is_whitespace() {
            at += 1;
            continue;
        } else if first == '\'' || first == '"' {
            let (quoted, end) = quoted(&characters, at)?;
            at = end;
            if first == '"' { Kind::Name(quoted) } else { Kind::Text(quoted) }
        } else if first.is_ascii_digit() || (first == '-' && number_follows) {
            let (digits, end) = run(at + 1, &|c| c.is_ascii_digit() || c == '.');
            at = end;
            Kind::Number(format!("{first}{digits}"))
        } else if first.is_alphabetic() || first == '_' {
            let (word, end) = run(at, &|c| c.is_alphanumeric() || c == '_');
            at = end;
            Kind::Word(word)
        } else if let Some(mark) = MARKS.into_iter().find(|mark| starts(mark)) {
            at += mark.len();
            Kind::Mark(mark)
        } else {
            let message = format!("unexpected \"{first}\"");
            return Err(PredicateError { at: begin + 1, message });
        };
        tokens.push(Token { at: begin + 1, kind });
    }
    tokens.push(Token { at: characters.len() + 1, kind: Kind::End });
    Ok(tokens)
}

/// What stands between two quotes, a doubled one being one, and where it ends.
fn quoted(characters: &[char], begin: usize) -> Result<(String, usize), PredicateError> {
    let quote = characters[begin];
    let (mut text, mut at) = (String::new(), begin + 1);
    loop {
        match (characters.get(at), characters.get(at + 1)) {
            (Some(c), Some(next)) if *c == quote && *next == quote => {
                text.push(quote);
                at += 2;
            }
            (Some(c), _) if *c == quote => return Ok((text, at + 1)),
            (Some(c), _) => {
                text.push(*c);
                at += 1;
            }
            (None, _) => {
                let message = format!("the quote {quote} is not closed");
                return Err(PredicateError { at: begin + 1, message });
            }
        }
    }
}

struct Parser {
    tokens: std::iter::Peekable<std::vec::IntoIter<Token>>,
    depth: usize,
}

impl FromStr for Predicate {
    type Err = PredicateError;

    fn from_str(text: &str) -> Result<Self, PredicateError> {
        if text.len() > limits::PREDICATE_BYTES_MAX {
            let most = limits::PREDICATE_BYTES_MAX;
            let message = format!("expected at most {most} bytes, got {}", text.len());
            return Err(PredicateError { at: 1, message });
        }
        let mut parser = Parser { tokens: tokens(text)?.into_iter().peekable(), depth: 0 };
        let root = parser.or()?;
        match parser.next() {
            Token { kind: Kind::End, .. } => Ok(Self { root }),
            token => Err(parser.unexpected(&token, "\"and\", \"or\" or the end")),
        }
    }
}

impl Parser {
    fn next(&mut self) -> Token {
        self.tokens.next().unwrap_or(Token { at: 1, kind: Kind::End })
    }

    fn unexpected(&self, token: &Token, expected: &str) -> PredicateError {
        PredicateError { at: token.at, message: format!("expected {expected}, got {}", token.kind) }
    }

    /// Takes the next token if it is this word.
    fn word(&mut self, wanted: &str) -> bool {
        let is = |token: &Token| matches!(&token.kind, Kind::Word(word) if word.eq_ignore_ascii_case(wanted));
        self.tokens.next_if(is).is_some()
    }

    fn mark(&mut self, wanted: &str) -> bool {
        self.tokens.next_if(|token| token.kind == Kind::Mark(own(wanted))).is_some()
    }

    fn or(&mut self) -> Result<Node, PredicateError> {
        let mut nodes = vec![self.and()?];
        while self.word("or") {
            nodes.push(self.and()?);
        }
        Ok(if nodes.len() == 1 { nodes.remove(0) } else { Node::Or(nodes) })
    }

    fn and(&mut self) -> Result<Node, PredicateError> {
        let mut nodes = vec![self.not()?];
        while self.word("and") {
            nodes.push(self.not()?);
        }
        Ok(if nodes.len() == 1 { nodes.remove(0) } else { Node::And(nodes) })
    }

    fn not(&mut self) -> Result<Node, PredicateError> {
        self.depth += 1;
        if self.depth > limits::PREDICATE_DEPTH_MAX {
            let token = self.next();
            let message = format!("nested more than {} deep", limits::PREDICATE_DEPTH_MAX);
            return Err(PredicateError { at: token.at, message });
        }
        let node = if self.word("not") {
            Node::Not(Box::new(self.not()?))
        } else if self.mark("(") {
            let node = self.or()?;
            let token = self.next();
            if token.kind != Kind::Mark(")") {
                return Err(self.unexpected(&token, "\")\""));
            }
            node
        } else {
            self.test()?
        };
        self.depth -= 1;
        Ok(node)
    }

    fn test(&mut self) -> Result<Node, PredicateError> {
        let column = self.column()?;
        if self.word("is") {
            let negated = self.word("not");
            if !self.word("null") {
                let token = self.next();
                return Err(self.unexpected(&token, "\"null\""));
            }
            let node = Node::IsNull(column);
            return Ok(if negated { Node::Not(Box::new(node)) } else { node });
        }
        let negated = self.word("not");
        if self.word("in") {
            let node = Node::In(column, self.values()?);
            return Ok(if negated { Node::Not(Box::new(node)) } else { node });
        }
        let token = self.next();
        let comparison = match token.kind {
            Kind::Mark("=") => Comparison::Equal,
            Kind::Mark("<>" | "!=") => Comparison::NotEqual,
            Kind::Mark("<") => Comparison::Less,
            Kind::Mark("<=") => Comparison::LessOrEqual,
            Kind::Mark(">") => Comparison::Greater,
            Kind::Mark(">=") => Comparison::GreaterOrEqual,
            _ if negated => return Err(self.unexpected(&token, "\"in\"")),
            _ => {
                let expected = "one of = <> < <= > >=, \"in\", \"not in\" or \"is\"";
                return Err(self.unexpected(&token, expected));
            }
        };
        if negated {
            return Err(self.unexpected(&token, "\"in\""));
        }
        Ok(Node::Compare(column, comparison, self.value()?))
    }

    fn column(&mut self) -> Result<Column, PredicateError> {
        let token = self.next();
        let first = match &token.kind {
            Kind::Name(name) => return Ok(Column { side: Side::Row, name: name.clone() }),
            Kind::Word(word) => word.clone(),
            _ => return Err(self.unexpected(&token, "a column")),
        };
        if !self.mark(".") {
            return Ok(Column { side: Side::Row, name: first });
        }
        let side = match first.to_ascii_lowercase().as_str() {
            "before" => Side::Before,
            "after" => Side::After,
            _ => return Err(self.unexpected(&token, "\"before\" or \"after\" in front of a dot")),
        };
        let token = self.next();
        match token.kind {
            Kind::Name(name) | Kind::Word(name) => Ok(Column { side, name }),
            _ => Err(self.unexpected(&token, "a column")),
        }
    }

    fn values(&mut self) -> Result<Vec<Value>, PredicateError> {
        let token = self.next();
        if token.kind != Kind::Mark("(") {
            return Err(self.unexpected(&token, "\"(\""));
        }
        let mut values = vec![self.value()?];
        loop {
            let token = self.next();
            match token.kind {
                Kind::Mark(",") => values.push(self.value()?),
                Kind::Mark(")") => return Ok(values),
                _ => return Err(self.unexpected(&token, "\",\" or \")\"")),
            }
        }
    }

    fn value(&mut self) -> Result<Value, PredicateError> {
        let token = self.next();
        match &token.kind {
            Kind::Text(text) => Ok(Value::Text(text.clone())),
            Kind::Number(number) if number.parse::<f64>().is_ok() => {
                Ok(Value::Number(number.clone()))
            }
            Kind::Word(word) if word.eq_ignore_ascii_case("true") => Ok(Value::Bool(true)),
            Kind::Word(word) if word.eq_ignore_ascii_case("false") => Ok(Value::Bool(false)),
            Kind::Word(word) if word.eq_ignore_ascii_case("null") => {
                Err(self.unexpected(&token, "a value; for null write \"is null\""))
            }
            _ => Err(self.unexpected(&token, "a value such as 'paid', 100 or true")),
        }
    }
}

/// The mark of that text.
fn own(wanted: &str) -> &'static str {
    MARKS.into_iter().find(|mark| *mark == wanted).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn holds(predicate: &str) -> bool {
        let predicate: Predicate = predicate.parse().unwrap_or_else(|e| panic!("{predicate}: {e}"));
        predicate.holds(&mut |column| match (column.side, column.name.as_str()) {
            (Side::Before, "status") => Found::Text("open".to_owned()),
            (_, "status") => Found::Text("paid".to_owned()),
            (_, "amount") => Found::Text("100.50".to_owned()),
            (_, "count") => Found::Number("-7".to_owned()),
            (_, "vip") => Found::Bool(true),
            (_, "note" | "odd name") => Found::Null,
            _ => Found::Nothing,
        })
    }

    #[test]
    fn conditions_hold_or_not() {
        for (predicate, expected) in [
            ("status = 'paid'", true),
            ("status <> 'paid'", false),
            ("before.status = 'open' and after.status = 'paid'", true),
            ("STATUS = 'paid'", false),
            ("status IN ('open', 'paid')", true),
            ("status not in ('open')", true),
            ("amount > 100", true),
            ("amount >= 100.5 AND amount <= 100.500", true),
            ("amount < 99.9", false),
            ("count = -7 and count < 0", true),
            ("count > -10 and not count > -7", true),
            ("vip = true", true),
            ("note is null", true),
            ("\"odd name\" is null", true),
            ("note is not null", false),
            ("status = 'x' or (vip = true and note is null)", true),
            ("not (status = 'x')", true),
        ] {
            assert_eq!(holds(predicate), expected, "{predicate}");
        }
    }

    #[test]
    fn with_nothing_a_comparison_is_neither_true_nor_false() {
        for predicate in [
            "gone = 1",
            "not gone = 1",
            "gone is null",
            "gone is not null",
            "note = 'x'",
            "not note = 'x'",
            "status = 7",
            "vip = 'true'",
            "gone in (1)",
            "gone not in (1)",
        ] {
            assert!(!holds(predicate), "{predicate}");
        }
        assert!(holds("gone = 1 or vip = true"));
        assert!(!holds("gone = 1 and vip = true"));
    }

    #[test]
    fn mistakes_are_told_with_their_place_and_what_would_be_right() {
        for (predicate, at, said) in [
            ("", 1, "expected a column, got the end"),
            (
                "status",
                7,
                "expected one of = <> < <= > >=, \"in\", \"not in\" or \"is\", got the end",
            ),
            ("status = ", 10, "expected a value such as 'paid', 100 or true, got the end"),
            ("status = null", 10, "for null write \"is null\", got null"),
            ("status = 'paid", 10, "the quote ' is not closed"),
            ("status = paid", 10, "expected a value such as 'paid'"),
            ("a = 1 b = 2", 7, "expected \"and\", \"or\" or the end, got b"),
            ("(a = 1", 7, "expected \")\", got the end"),
            ("a in 1", 6, "expected \"(\", got 1"),
            ("a not = 1", 7, "expected \"in\", got ="),
            ("x.a = 1", 1, "expected \"before\" or \"after\" in front of a dot, got x"),
            ("a = 1; drop", 6, "unexpected \";\""),
            ("a is 1", 6, "expected \"null\", got 1"),
            ("a = 1.2.3", 5, "expected a value"),
        ] {
            let error = predicate.parse::<Predicate>().unwrap_err();
            assert_eq!(error.at, at, "{predicate}: {error}");
            assert!(error.message.contains(said), "{predicate}: {error}");
        }
        let deep = format!("{}a = 1", "not ".repeat(100));
        assert!(deep.parse::<Predicate>().unwrap_err().message.contains("nested more than"));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[a-z0-9 '\"().,<>=!é-]{0,60}") {
            let _ = text.parse::<Predicate>();
        }

        #[test]
        fn numbers_compare_as_numbers_do(a in -1_000_000_i64..1_000_000, b in -1_000_000_i64..1_000_000) {
            let text = |n: i64| format!("{}{}.{:03}0", if n < 0 { "-" } else { "" }, n.abs() / 1000, n.abs() % 1000);
            prop_assert_eq!(numbers(&text(a), &text(b)), Some(a.cmp(&b)));
        }
    }
}
