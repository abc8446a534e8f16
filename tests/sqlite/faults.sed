# SQLite's fault injection asks register.c whether a call is replvfs's own: such a call is not counted, and does not fail.
1i int suite_own(void);
/^#define SimulateIOError(CODE)/a\  if( suite_own() ){}else \\
/^#define SimulateDiskfullError(CODE)/a\  if( suite_own() ){}else \\
s/^#define SimulateIOErrorBenign(X) \(sqlite3_io_error_benign=(X)\)/#define SimulateIOErrorBenign(X) if( !suite_own() ) \1/
s/^#define OpenCounter(X)  *\(sqlite3_open_file_count+=(X)\)/#define OpenCounter(X) if( !suite_own() ) \1/
/^static int faultsimStep(void){/a\  if( suite_own() ) return 0;
/^static int tsIsFail(void){/a\  if( suite_own() ) return 0;
