//! Where to connect: a parsed connection string that keeps its password to itself.

use std::fmt;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{Error, tls};

/// How long a TCP connection may be idle before the kernel asks whether the peer is still there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
/// How often the kernel asks again, and after how many unanswered questions it gives up.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;
/// How long sent bytes may stay unacknowledged before the connection counts as dead.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(30);

/// A database to connect to. `Debug` and `Display` show user, host, port and database, never the
/// password.
#[derive(Clone)]
pub struct Target {
    config: Config,
    tls: MakeRustlsConnect,
}

impl Target {
    /// Parses a libpq URL or key=value string, as tokio-postgres reads them: several hosts, Unix
    /// sockets by `host=/directory`, `sslmode` (all of `disable`, `prefer`, `require`,
    /// `verify-ca`, `verify-full`; `prefer` when not given).
    ///
    /// # Errors
    /// [`Error::Malformed`], which does not quote the text: it may hold a password.
    pub fn parse(url: &str) -> Result<Self, Error> {
        let (text, verify) = without_verify(url);
        let mut config: Config =
            text.parse().map_err(|error| Error::Malformed { reason: reason_of(&error) })?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(Error::Malformed { reason: "it names no host" });
        }
        if config.get_dbname().is_none() {
            return Err(Error::Malformed { reason: "it names no database" });
        }
        // TLS is for the network; libpq too ignores sslmode on a Unix socket.
        if config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_)))
            && config.get_hostaddrs().is_empty()
        {
            config.ssl_mode(SslMode::Disable);
        }
        if config.get_keepalives_interval().is_none() {
            config.keepalives_idle(KEEPALIVE_IDLE);
            config.keepalives_interval(KEEPALIVE_INTERVAL);
            config.keepalives_retries(KEEPALIVE_RETRIES);
        }
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(UNACKNOWLEDGED_MAX);
        }
        Ok(Self { config, tls: tls::connector(verify)? })
    }

    /// Replaces each `${NAME}` by the value of that environment variable, then parses. The value is
    /// put in as it stands, so inside a URL it has to be percent-encoded already.
    ///
    /// # Errors
    /// [`Error::Variable`] names a variable that is not set; otherwise as [`Target::parse`].
    pub fn resolve(template: &str) -> Result<Self, Error> {
        Self::parse(&substitute(template, |name| std::env::var(name).ok())?)
    }

    /// Checks a template for [`Target::resolve`] without resolving it: it may be kept and shown, so
    /// a password in it has to be a reference.
    ///
    /// # Errors
    /// [`Error::LiteralPassword`], [`Error::Malformed`].
    pub fn check_template(template: &str) -> Result<(), Error> {
        // A port number, so that a reference may stand for a port too.
        const STAND_IN: &str = "54321";
        let text = substitute(template, |_| Some(STAND_IN.to_owned()))?;
        if template.starts_with("${") {
            // The reference may stand for a whole connection string.
            let literal =
                text.split("password=").nth(1).is_some_and(|it| !it.starts_with(STAND_IN));
            return if literal { Err(Error::LiteralPassword) } else { Ok(()) };
        }
        match Self::parse(&text)?.config.get_password() {
            None | Some(b"") => Ok(()),
            Some(password) if password == STAND_IN.as_bytes() => Ok(()),
            Some(_) => Err(Error::LiteralPassword),
        }
    }

    /// The settings for a connection that is made elsewhere, such as for replication.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The connector to go with [`Target::config`].
    pub fn tls(&self) -> MakeRustlsConnect {
        self.tls.clone()
    }

    /// The database's name.
    pub fn database(&self) -> &str {
        self.config.get_dbname().unwrap_or_default()
    }

    /// The same server, another database.
    pub fn with_database(&self, name: &str) -> Self {
        let mut other = self.clone();
        other.config.dbname(name);
        other
    }

    /// The same database as another user. Without a password none is sent: this user's is not
    /// meant for the other.
    pub fn with_user(&self, name: &str, password: Option<&str>) -> Self {
        let mut other = self.clone();
        other.config.user(name);
        other.config.password(password.unwrap_or_default());
        other
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(user) = self.config.get_user() {
            write!(f, "{user}@")?;
        }
        for (index, host) in self.config.get_hosts().iter().enumerate() {
            let separator = if index > 0 { "," } else { "" };
            match host {
                Host::Tcp(name) => write!(f, "{separator}{name}")?,
                Host::Unix(path) => write!(f, "{separator}{}", path.display())?,
            }
            let ports = self.config.get_ports();
            let port = ports.get(index).or_else(|| ports.first()).copied().unwrap_or(5432);
            write!(f, ":{port}")?;
        }
        write!(f, "/{}", self.database())
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({self})")
    }
}

/// tokio-postgres knows TLS only as off, wanted and required; whether the certificate is checked
/// is the connector's affair. So `verify-*` becomes `require` here and a flag beside it.
fn without_verify(url: &str) -> (String, bool) {
    let verified = ["sslmode=verify-full", "sslmode=verify-ca"];
    let Some(mode) = verified.into_iter().find(|mode| url.contains(mode)) else {
        return (url.to_owned(), false);
    };
    (url.replace(mode, "sslmode=require"), true)
}

/// A reason that quotes nothing of the text.
fn reason_of(error: &tokio_postgres::Error) -> &'static str {
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    let known = [
        ("unknown option", "it has an option that is not supported"),
        ("`sslmode`", "its sslmode is none of disable, prefer, require, verify-ca, verify-full"),
        ("`port`", "its port is not a number from 0 to 65535"),
        ("`hostaddr`", "its hostaddr is not an IP address"),
        ("invalid value", "an option has a value that is not allowed"),
    ];
    let found = known.into_iter().find(|(sign, _)| cause.contains(sign));
    found.map_or("it has neither form", |(_, reason)| reason)
}

/// `template` with each `${NAME}` replaced by what `lookup` gives.
fn substitute(template: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<String, Error> {
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, reference)) = rest.split_once("${") {
        let Some((name, after)) = reference.split_once('}') else {
            return Err(Error::Malformed { reason: "a ${ is not closed by }" });
        };
        text.push_str(before);
        text.push_str(&lookup(name).ok_or_else(|| Error::Variable { name: name.to_owned() })?);
        rest = after;
    }
    text.push_str(rest);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_and_pairs_and_sockets_are_read() {
        for (text, shown) in [
            ("postgresql://app:geheim@db.example:5433/shop", "app@db.example:5433/shop"),
            ("postgres://app@[::1]/shop?sslmode=require", "app@::1:5432/shop"),
            ("postgresql://app@/shop?host=/run/pg", "app@/run/pg:5432/shop"),
            ("postgresql://app@%2Frun%2Fpg/shop", "app@/run/pg:5432/shop"),
            (
                "host=/run/pg port=6000 user=app password='ge heim' dbname=shop",
                "app@/run/pg:6000/shop",
            ),
            ("postgresql://app@a:1,b:2/shop?sslmode=disable", "app@a:1,b:2/shop"),
        ] {
            assert_eq!(Target::parse(text).unwrap().to_string(), shown, "{text}");
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        let target = Target::parse("postgresql://app:geheim@db.example/shop").unwrap();
        assert!(!format!("{target} {target:?} {:?}", target.config()).contains("geheim"));
        for text in ["postgresql://app:ge/heim?geheim@db/shop?geheim=1", "geheim", "host=geheim"] {
            let error = Target::parse(text).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("geheim"), "{error}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, reason) in [
            ("postgresql://app@db:notaport/shop", "port"),
            ("postgresql://app@/shop", "names no host"),
            ("postgresql://app@db", "names no database"),
            ("postgresql://app@db/shop?sslmode=maybe", "verify-full"),
            ("postgresql://app@db/shop?sslcert=x", "not supported"),
            ("nonsense", "neither form"),
        ] {
            let message = Target::parse(text).unwrap_err().to_string();
            assert!(message.contains(reason), "{text}: {message}");
        }
    }

    #[test]
    fn verification_is_asked_for_by_sslmode() {
        assert_eq!(
            without_verify("postgresql://a@b/c?sslmode=verify-full&port=1"),
            ("postgresql://a@b/c?sslmode=require&port=1".to_owned(), true)
        );
        assert!(!without_verify("host=a dbname=b sslmode=require").1);
    }

    #[test]
    fn references_are_replaced_and_a_missing_one_is_named() {
        let lookup = |name: &str| (name == "PW").then(|| "geheim".to_owned());
        assert_eq!(substitute("a:${PW}@b/${PW}", lookup).unwrap(), "a:geheim@b/geheim");
        assert_eq!(substitute("$PW $", lookup).unwrap(), "$PW $");
        let missing = substitute("${PW}${OTHER}", lookup).unwrap_err();
        assert!(matches!(&missing, Error::Variable { name } if name == "OTHER"), "{missing}");
        assert!(substitute("${PW", lookup).is_err());
    }

    #[test]
    fn a_template_holds_no_password_of_its_own() {
        for template in [
            "${SHOP_DATABASE_URL}",
            "${SHOP_DATABASE_URL}?sslmode=require",
            "postgresql://app@/shop?host=/run/pg",
            "postgresql://${USER}:${PW}@${HOST}:${PORT}/${DB}",
            "host=db dbname=shop user=app password=${PW} port=${PORT}",
        ] {
            Target::check_template(template).unwrap();
        }
        for template in [
            "postgresql://app:geheim@db/shop",
            "postgresql://app:${PW}geheim@db/shop",
            "postgresql://app@db/shop?password=geheim",
            "host=db dbname=shop user=app password='geheim'",
            "${BASE}?password=geheim",
        ] {
            let error = Target::check_template(template).unwrap_err();
            assert!(matches!(error, Error::LiteralPassword), "{template}: {error}");
            assert!(!error.to_string().contains("geheim"));
        }
        assert!(Target::check_template("nonsense").is_err());
    }

    #[test]
    fn another_user_does_not_inherit_the_password() {
        let target = Target::parse("postgresql://app:geheim@db/shop").unwrap();
        let other = target.with_user("other", None).with_database("else");
        assert_eq!(other.to_string(), "other@db:5432/else");
        assert_eq!(other.config().get_password(), Some(&b""[..]));
    }
}
