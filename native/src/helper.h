/*
 * helper.h: what helpers use of one another.
 */
#ifndef HELPER_H
#define HELPER_H

#include "userbpf.h"

uint64_t ub_clock(int clock) UB_KEEP_REGS;
uint64_t ub_helper_get_current_comm(struct ub_run *run, void *buf, uint64_t size) UB_KEEP_REGS;

#endif
