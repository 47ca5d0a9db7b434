//! The `cadastre` binary.

fn main() -> std::process::ExitCode {
    cadastre::cli::main()
}
