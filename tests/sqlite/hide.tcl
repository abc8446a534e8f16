# Sourced at the end of SQLite's tester.tcl: the scripts look at the files of their folder, and copy all that begin with the name of a database. What
# replvfs has there, and of that only a socket cannot be copied, is not what they are about.

if {[info commands suite_glob] eq ""} {
  rename glob suite_glob
  proc glob {args} {
    set quiet [expr {"-nocomplain" in $args}]
    set found [list]
    foreach file [uplevel 1 [list suite_glob -nocomplain {*}$args]] {
      if {![regexp {\-replvfs(-lock|-sock|-spill|-new)?$} $file]} { lappend found $file }
    }
    if {!$quiet && [llength $found]==0} {
      error "no files matched glob pattern \"[lindex $args end]\""
    }
    return $found
  }
}
