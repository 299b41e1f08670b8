/* What the parts of the plugin share: settings, counters, the state of loading. */
#ifndef DP_LLAMACPP_PLUGIN_H
#define DP_LLAMACPP_PLUGIN_H

#include <stdatomic.h>
#include <stdbool.h>

#include "llamacpp/settings.h"

/* Counted where they happen, printed with DOUBLEP_STATS=1; the registry's "doublep_counters" returns them. Of nodes of
 * attention, one per layer and step: */
typedef struct plugin_counters {
    _Atomic uint64_t sparse, dense; /* computed by the library, one per sequence of the step */
    _Atomic uint64_t passed;        /* claimed, but left to the CPU backend: masks that no list fits, and */
    _Atomic uint64_t prompts, refused; /* prompts; after an error, want of memory as a rule */
    _Atomic uint64_t bytes, bytes_dense;
    _Atomic uint64_t tokens_copied; /* per layer */
    _Atomic uint64_t queries;       /* of prompts, that the index was shown; per layer */
    _Atomic uint64_t rebuilds;      /* lists that had to be read again from the cache */
    /* Time: lists, copies and index while prompts were read; likewise while decoding; attention itself. */
    _Atomic uint64_t prompt_ns, growth_ns, decode_ns;
} plugin_counters;

typedef struct plugin_state {
    plugin_settings settings;
    plugin_counters counters;
} plugin_state;

extern plugin_state plugin;

#endif
