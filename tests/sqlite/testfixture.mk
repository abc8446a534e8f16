# Run in SQLite's build folder: testfixture with replvfs in it. Each source is compiled for itself, so that it takes all cores.
#   SUITE_SOURCE     what registers replvfs
#   SUITE_CFLAGS, SUITE_LIBS   of libreplvfs.a
include Makefile

suite_flags = -DSQLITE_NO_SYNC=1 $(TESTFIXTURE_FLAGS) -DSQLITE_EXTRA_INIT=suite_initialized $(SUITE_CFLAGS)
suite_sources = $(TESTFIXTURE_SRC) $(SUITE_SOURCE)
suite_objects = $(addprefix suite/,$(notdir $(suite_sources:.c=.o)))

define suite_rule
suite/$(notdir $(1:.c=.o)): $(1) $(T.tcl.env.sh) | $(TESTFIXTURE_SRC)
	@mkdir -p suite
	@$$(T.link.tcl) $$(suite_flags) $$$$TCL_INCLUDE_SPEC -c -o $$@ $(1)
endef
$(foreach source,$(suite_sources),$(eval $(call suite_rule,$(source))))

testfixture-replvfs: $(suite_objects) $(SUITE_ARCHIVE)
	$(T.link.tcl) -o $@ $(suite_objects) $(SUITE_LIBS) $$TCL_LIB_SPEC $$TCL_LIBS $(LDFLAGS.libsqlite3)
