//! Tells what happens, and keeps count of what did not happen as it should.

use std::fmt::Display;

use super::super::error::Error;
use super::super::output;

/// The voice of the demo.
#[derive(Debug, Default)]
pub(super) struct Narrator {
    steps: u32,
    failed: u32,
}

impl Narrator {
    /// What this is about.
    pub(super) fn opening(&self) -> Result<(), Error> {
        output::text(
            "Cadastre gives every dataset one owner. The rule is held inside PostgreSQL, whatever \
             client\nwrites, and everyone else is told of every change and who made it.\n\n\
             Two services share the database \"shop\": orders (role orders_app) and billing (role\n\
             billing_app). As in many databases that have grown, PostgreSQL itself would let both \
             of\nthem do anything to every table.\n",
        )
    }

    /// A new step, with a sentence on why it matters.
    pub(super) fn step(&mut self, title: &str, why: &str) -> Result<(), Error> {
        self.steps += 1;
        output::text(&format!("\n{}. {title}\n   {why}\n", self.steps))
    }

    /// Something that is done, for example SQL by a role.
    pub(super) fn act(&self, who: &str, what: &str) -> Result<(), Error> {
        output::text(&format!("   {who}> {what}\n"))
    }

    /// A detail of what came of it.
    pub(super) fn note(&self, text: impl Display) -> Result<(), Error> {
        text.to_string().lines().try_for_each(|line| output::text(&format!("       {line}\n")))
    }

    /// What should be so, and whether it is. Returns it, so that what depends on it can be left out.
    pub(super) fn expect(&mut self, is_so: bool, what: &str) -> Result<bool, Error> {
        self.failed += u32::from(!is_so);
        output::text(&format!("   {} {what}\n", if is_so { '✓' } else { '✗' }))?;
        Ok(is_so)
    }

    /// The end of the story: whether everything was as it should be.
    pub(super) fn verdict(&self) -> Result<(), Error> {
        match self.failed {
            0 => output::text("\nEvery step did what it says.\n"),
            failed => {
                output::text(&format!("\n{failed} of the expectations above did not hold (✗).\n"))?;
                Err(Error::No)
            }
        }
    }
}
