/*
 * runtime.c: what is linked into every program, as one unit.
 */
#include "map_lock.c"
#include "map_hash.c"
#include "map_percpu.c"
#include "map_ringbuf.c"
#include "map_perf.c"
#include "helper_map.c"
#include "helper_task.c"
#include "helper_trace.c"
#include "hook_enter.c"
