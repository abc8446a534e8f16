# To be sourced: `memcheck`, the command before a program, which ends with 9 where it finds an error, or a block that nobody can free any more. Nothing is
# suppressed. What is still reachable is meant: VFSes, and what they know of databases, are never freed.
memcheck=(valgrind --quiet --error-exitcode=9 --num-callers=30
    --leak-check=full --show-leak-kinds=definite,indirect --errors-for-leak-kinds=definite,indirect)
