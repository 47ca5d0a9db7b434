//! An error with everything that caused it, on one line.

use std::error::Error;
use std::fmt::{Display, Formatter, Result};

/// Displays an error and its sources, joined by `: `. Some libraries print their source themselves;
/// a source that the text so far already ends with is not said again.
#[derive(Debug, Clone, Copy)]
pub struct ErrorChain<'a>(pub &'a (dyn Error + 'a));

impl Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut next = self.0.source();
        while let Some(source) = next {
            let text = source.to_string();
            if !said.ends_with(&text) {
                write!(f, ": {text}")?;
                said = text;
            }
            next = source.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Layer>>,
    }

    fn chain(texts: &[&'static str]) -> Option<Box<Layer>> {
        let (text, rest) = texts.split_first()?;
        Some(Box::new(Layer { text, source: chain(rest) }))
    }

    #[test]
    fn every_layer_is_said_once() {
        let say = |texts: &[&'static str]| ErrorChain(&*chain(texts).unwrap()).to_string();
        assert_eq!(say(&["top"]), "top");
        assert_eq!(
            say(&["could not append", "no pool", "refused"]),
            "could not append: no pool: refused"
        );
        assert_eq!(say(&["top", "connect: refused", "refused"]), "top: connect: refused");
    }
}
