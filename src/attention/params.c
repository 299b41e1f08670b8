/* Parameters of a call: defaults and checks. */
#include <string.h>

#include "attention/step.h"
#include "runtime/structs.h"

void dp_attention_params_init(dp_attention_params *params)
{
    memset(params, 0, sizeof *params);
    params->struct_size = sizeof *params;
    params->method = DP_DOUBLE_P;
    params->refine = DP_REFINE_BUDGET;
    params->p1 = 0.95f;
    params->p2 = 0.7f;
    params->epsilon = 0.07f;
    params->min_context = 2048;
    params->dispersion = 1;
    params->exact_mass = 1;
    params->slope = 1;
}

void dp_attention_params_init_paper(dp_attention_params *params)
{
    dp_attention_params_init(params);
    params->refine = DP_REFINE_TOP_P;
    params->p1 = 0.95f;
    params->p2 = 0.7f;
    params->dispersion = 0;
    params->exact_mass = 0;
    params->slope = 0;
}

void dp_attention_stats_init(dp_attention_stats *stats)
{
    memset(stats, 0, sizeof *stats);
    stats->struct_size = sizeof *stats;
}

dp_status dp_params_settle(dp_step *step, const dp_attention_params *params)
{
    dp_attention_params *const p = &step->params;
    dp_attention_params_init(p);
    if (!params) return DP_OK;
    if (!DP_STRUCT_IN(p, params))
        return dp_step_refuse(step, "params->struct_size is %u; call dp_attention_params_init first",
                              params->struct_size);
    if ((unsigned)p->method > DP_DOUBLE_P) return dp_step_refuse(step, "method is %d, no such method", (int)p->method);
    if ((unsigned)p->refine > DP_REFINE_TOP_P)
        return dp_step_refuse(step, "refine is %d, no such rule", (int)p->refine);
    if (!(p->p1 >= 0 && p->p1 <= 1)) return dp_step_refuse(step, "p1 is %g, must be in [0, 1]", (double)p->p1);
    if (p->refine == DP_REFINE_TOP_P && !(p->p2 >= 0 && p->p2 <= p->p1))
        return dp_step_refuse(step, "p2 is %g, must be in [0, p1 = %g]", (double)p->p2, (double)p->p1);
    if (p->refine == DP_REFINE_BUDGET && !(p->epsilon >= 0 && p->epsilon <= 1))
        return dp_step_refuse(step, "epsilon is %g, must be in [0, 1]", (double)p->epsilon);
    return DP_OK;
}
