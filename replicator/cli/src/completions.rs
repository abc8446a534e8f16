//! `replvfs completions`: what a shell needs to complete the command line.

use std::io::Write;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::Failure;

/// Prints a script that makes a shell complete the command line.
///
/// For bash: `replvfs completions bash > ~/.local/share/bash-completion/completions/replvfs`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The shell.
    shell: Shell,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    std::io::stdout().write_all(&script(arguments.shell))?;
    Ok(())
}

/// In memory first: the generator gives up with a panic where nobody reads.
fn script(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut crate::Arguments::command(), "replvfs", &mut script);
    script
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use clap::ValueEnum;

    use super::*;

    #[test]
    fn every_shell_gets_every_command() {
        for shell in Shell::value_variants() {
            let script = String::from_utf8(script(*shell)).unwrap();
            for name in ["restore", "log", "status", "completions", "--txid"] {
                let name = if *shell == Shell::Fish {
                    name.trim_start_matches('-')
                } else {
                    name
                };
                assert!(script.contains(name), "{shell}: {name}");
            }
        }
    }

    #[test]
    fn bash_understands_its_script() {
        let mut bash = Command::new("bash")
            .arg("-n")
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        bash.stdin.take().unwrap().write_all(&script(Shell::Bash)).unwrap();
        let output = bash.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
