# Run in SQLite's build folder: testfixture with replvfs in it. Each source is compiled for itself, so that it takes all cores.
#   SUITE_SOURCE     what registers replvfs
#   SUITE_CFLAGS, SUITE_LIBS   of libreplvfs.a
include Makefile

suite_flags = -DSQLITE_NO_SYNC=1 $(TESTFIXTURE_FLAGS) -DSQLITE_EXTRA_INIT=suite_initialized $(SUITE_CFLAGS)
# What injects faults, each beside the number of lines of it that faults.sed changes.
suite_faults = sqlite3.c=5 $(TOP)/src/test_malloc.c=2 $(TOP)/src/test_syscall.c=2
suite_faults_sources = $(foreach source,$(suite_faults),$(firstword $(subst =, ,$(source))))
suite_sources = $(filter-out $(suite_faults_sources),$(TESTFIXTURE_SRC)) $(addprefix suite/,$(notdir $(suite_faults_sources))) $(SUITE_SOURCE)
suite_objects = $(addprefix suite/,$(notdir $(suite_sources:.c=.o)))

define suite_faults_rule
suite/$(notdir $(1)): $(1) $(SUITE_FAULTS)
	@mkdir -p suite
	@sed -f $(SUITE_FAULTS) $(1) >$$@.new
	@test $$$$(grep -c 'suite_own()\|suite_own(void)' $$@.new) = $(2) || { echo "error: $(1) injects faults in another way"; exit 1; }
	@mv $$@.new $$@
endef
$(foreach source,$(suite_faults),$(eval $(call suite_faults_rule,$(firstword $(subst =, ,$(source))),$(lastword $(subst =, ,$(source))))))

define suite_rule
suite/$(notdir $(1:.c=.o)): $(1) $(T.tcl.env.sh) | $(TESTFIXTURE_SRC)
	@mkdir -p suite
	@$$(T.link.tcl) $$(suite_flags) $$$$TCL_INCLUDE_SPEC -c -o $$@ $(1)
endef
$(foreach source,$(suite_sources),$(eval $(call suite_rule,$(source))))

testfixture-replvfs: $(suite_objects) $(SUITE_ARCHIVE)
	$(T.link.tcl) -o $@ $(suite_objects) $(SUITE_LIBS) $$TCL_LIB_SPEC $$TCL_LIBS $(LDFLAGS.libsqlite3)

# The programs beside it have the SQLite that everybody has, without its test code.
suite_program_flags = -DSQLITE_EXTRA_INIT=suite_initialized -DSQLITE_ENABLE_RTREE $(SUITE_CFLAGS)
programs/sqlite3.o: sqlite3.c
	@mkdir -p programs
	@$(T.cc) -I. $(suite_program_flags) -c -o $@ $<
programs/register.o: $(SUITE_SOURCE) sqlite3.c
	@mkdir -p programs
	@$(T.cc) -I. $(suite_program_flags) -c -o $@ $<
suite_program = @$(T.cc) -I. -I$(TOP)/src -I$(TOP)/test $(1) -o $@ $(filter %.c,$^) $(filter %.o,$^) $(SUITE_LIBS) $(LDFLAGS.libsqlite3)
programs/mptester: $(TOP)/mptest/mptest.c programs/sqlite3.o programs/register.o $(SUITE_ARCHIVE)
	$(call suite_program,)
programs/threadtest3: $(TOP)/test/threadtest3.c $(TOP)/src/test_multiplex.c programs/sqlite3.o programs/register.o $(SUITE_ARCHIVE)
	$(call suite_program,)
programs/speedtest1: $(TOP)/test/speedtest1.c programs/sqlite3.o programs/register.o $(SUITE_ARCHIVE)
	$(call suite_program,)
# Its option --vfstrace is not used.
suite_without_vfstrace = -Wl,--defsym=vfstrace_register=0
programs/fork-test: $(TOP)/test/fork-test.c programs/sqlite3.o programs/register.o $(SUITE_ARCHIVE)
	$(call suite_program,$(suite_without_vfstrace))
programs: programs/mptester programs/threadtest3 programs/speedtest1 programs/fork-test
.PHONY: programs
