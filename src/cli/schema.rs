//! `cadastre schema`: what others build against, as this program serves it.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::error::Error;
use super::output;
use crate::vocab::RoleName;
use crate::{api, capture, feed, guard, log};

/// Prints a part of what others build against, or writes all of it.
#[derive(Debug, Args)]
pub(crate) struct Schema {
    /// What to print.
    #[arg(value_enum, required_unless_present = "write")]
    part: Option<Part>,
    /// Write every file below this directory instead.
    #[arg(long, value_name = "DIR", conflicts_with = "part")]
    write: Option<PathBuf>,
    /// With bootstrap: the role that Cadastre is to connect as.
    #[arg(long, value_name = "ROLE", required_if_eq("part", "bootstrap"))]
    role: Option<RoleName>,
    /// With bootstrap: a role that owns tables which are to be governed; may be repeated.
    #[arg(long, value_name = "ROLE", requires = "role")]
    owner: Vec<RoleName>,
}

/// A part of the schema directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The GraphQL schema.
    Graphql,
    /// The description of the HTTP interface.
    Openapi,
    /// JSON Schema of the events.
    Events,
    /// What is installed into a source.
    Guard,
    /// What a superuser runs once in a source, so that Cadastre's role there need not be one.
    Bootstrap,
}

/// Runs the command.
pub(crate) fn run(command: &Schema) -> Result<(), Error> {
    match (&command.write, command.part) {
        (None, Some(Part::Bootstrap)) => {
            let role = command.role.as_ref();
            let role = role.ok_or_else(|| Error::Usage("name the role: --role ROLE".to_owned()))?;
            output::text(&guard::bootstrap(role, &command.owner))
        }
        (Some(dir), _) => Part::value_variants().iter().try_for_each(|part| write(dir, *part)),
        (None, Some(part)) => {
            let files = files(part);
            output::text(&files.into_iter().map(|(_, text)| text).collect::<String>())
        }
        (None, None) => Err(Error::Usage("name a part, or --write DIR".to_owned())),
    }
}

/// The files of a part, by path below the schema directory, in the order they are used.
fn files(part: Part) -> Vec<(String, String)> {
    let file = |name: &str, text: &str| (name.to_owned(), text.to_owned());
    match part {
        Part::Graphql => vec![file("graphql/cadastre.graphql", &api::graphql_sdl())],
        Part::Openapi => vec![file("openapi.json", &api::openapi_json())],
        Part::Events => vec![
            file("events/change.json", capture::CHANGE_SCHEMA),
            file("events/ownership.json", capture::OWNERSHIP_SCHEMA),
            file("events/guard.json", capture::GUARD_SCHEMA),
            file("events/gap.json", log::GAP_SCHEMA),
            file("events/snapshot.json", feed::SNAPSHOT_SCHEMA),
            file("events/schema.json", capture::SCHEMA_SCHEMA),
        ],
        Part::Guard => {
            guard::SCHEMA.iter().map(|(name, text)| file(&format!("guard/{name}"), text)).collect()
        }
        // It depends on whom it is for.
        Part::Bootstrap => Vec::new(),
    }
}

fn write(dir: &Path, part: Part) -> Result<(), Error> {
    for (name, text) in files(part) {
        let path = dir.join(name);
        let parent = path.parent().unwrap_or(dir);
        std::fs::create_dir_all(parent).and_then(|()| std::fs::write(&path, text)).map_err(
            |source| Error::File { action: "write", path: path.display().to_string(), source },
        )?;
    }
    Ok(())
}
