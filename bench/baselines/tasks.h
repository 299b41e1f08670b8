/* tasks.h: numbered tasks on the runtime's team. */
#ifndef DOUBLEP_BENCH_TASKS_H
#define DOUBLEP_BENCH_TASKS_H

#include "runtime/team.h"

/* Runs fn(argument, task, thread) for the tasks 0 .. n - 1, in no order. */
typedef void (*task_fn)(void *argument, size_t task, int thread);

typedef struct task_list {
    task_fn fn;
    void *argument;
    size_t n;
    dp_ticket ticket;
} task_list;

static inline void tasks_worker(void *argument, int thread, int n_threads)
{
    task_list *const list = argument;
    (void)n_threads;
    for (size_t t; (t = dp_ticket_take(&list->ticket)) < list->n;)
        list->fn(list->argument, t, thread);
}

static inline void tasks_run(const dp_runtime *runtime, size_t n, task_fn fn, void *argument)
{
    task_list list = {.fn = fn, .argument = argument, .n = n};
    if (n == 1)
        fn(argument, 0, 0);
    else if (n > 1)
        dp_team_run(runtime, tasks_worker, &list);
}

#endif
