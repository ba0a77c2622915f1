// What the Python side hands over; `native/plan.py` mirrors it field by field.
#pragma once
#include <cstdint>

enum Activation : int32_t { NONE, TANH, RELU, ELU, SILU };
enum Objective : int32_t { CLIP, PENALTY, POLICY_GRADIENT };
enum Kind : int32_t { CATEGORICAL, GAUSSIAN };

struct Layer {  // y = activation(W x + b), W as in torch, [outputs, inputs]
    int32_t inputs, outputs;
    int32_t activation;
    const float *weight, *bias;
    float *weight_gradient, *bias_gradient;  // null where nothing is learned
};

struct Group {  // a flat vector of parameters with Adam's state
    float *parameter, *gradient, *exp_avg, *exp_avg_sq;
    float *step;
    const float *learning_rate;
    const float *decay;  // share of each parameter that a step takes away, times the learning rate; may be null
    int64_t size;
    float eps, max_norm;
    int32_t moves;  // whether steps are taken
};

struct Distribution {
    int32_t kind;
    const int32_t *choices;  // of each dimension, categorical
    int32_t dims;
    const float *log_std;    // [dims], Gaussian
    float *log_std_gradient;  // null where it isn't learned
};

struct Batch {  // R rows
    const float *observation;   // [R, D]
    const int64_t *choice;      // [R, dims], categorical
    const float *action;        // [R, dims], Gaussian
    const uint8_t *legal;       // [R, logits]; null where everything is
    const float *old_parameters;  // [R, logits], or means [R, dims]; null where no divergence is asked for
    const float *old_log_std;   // [R, dims]
    const float *log_prob, *advantage, *target;  // [R]
    const float *old_value;     // [R]; null without value clip
    const int64_t *task;        // [R]; null where there is one
};

struct Plan {
    const Layer *shared, *actor, *critic;  // the last of actor and critic are the heads' layers
    int32_t n_shared, n_actor, n_critic;
    Group *groups;
    int32_t n_groups;

    Distribution distribution;

    const float *value_shift, *value_scale;  // per task: z = (y - shift) scale; null where the layer answers z

    int32_t objective;
    int32_t learn_actor, learn_critic, standardize;
    float clip_range, dual_clip /* 0: none */, penalty, entropy_coef;
    float value_coef, value_clip /* 0: none */, value_huber /* 0: none */;
    float max_norm;   // of all groups together; 0: each by its own
    float kl_limit;   // 0: none
    float beta1, beta2;
    int32_t threads;  // at most two are of use

    Batch batch;
    const int64_t *index;  // [minibatches, size]
    const float *weight;   // [minibatches, size]
    int64_t minibatches, size;

    float *blocked;  // in and out: where not 0, nothing is stepped
    float *means;    // out: sums over the steps taken, in the order of `Mean`, then the groups' gradient norms
    uint8_t *broken; // out: loss, then the groups' gradients: whether one was not finite
    int64_t *counted;  // out: steps that are in the sums

    // Sums the groups' gradients and the minibatch's means over ranks, in place; not 0 where that failed. Null for one.
    int32_t (*reduce)(double *means);
};

struct Reading {  // observations through layers
    const Layer *layers;
    int32_t n_layers;
    int32_t rows;         // at once
    int32_t wide;         // whether observations are of double precision
    const double *mean, *std;  // of observations; null where they are taken as they are
    double clip;          // of what is normalised
};

struct Acting {
    Reading reading;      // through shared and actor's layers, the head's last
    Distribution distribution;
    const int64_t *start;  // the environment's number for the first choice of each dimension
    const float *low, *high;  // bounds of the environment's actions
    const float *center, *half_range;  // of these, where -1 to 1 stands for low to high; else null
    const void *observation;  // [steps, rows, inputs], read when its step is taken
    const float *noise;   // [steps, rows, dims, most choices], or [steps, rows, dims] where they are Gaussian
    void *action;         // out: [steps, rows, dims], int64 or float
    float *parameters;    // out: [steps, rows, logits], or means [steps, rows, dims]
    void *given;          // out: the actions as the environment takes them
};

struct Returns {  // all [steps, columns]
    const float *reward, *value, *next_value;
    const uint8_t *terminated, *truncated, *valid;
    float gamma, lam;
    int64_t steps, columns;
    float *advantage, *target;  // out
};

struct Actor {
    virtual ~Actor() = default;
    // Chooses the actions of step t; what is legal then is null where everything is.
    virtual void act(int64_t t, const uint8_t *legal) = 0;
};

struct Code {  // the kernels for one instruction set
    void (*epochs)(const Plan &);
    void (*features)(const Reading &, const void *observation, int64_t rows, float *answers);
    Actor *(*new_actor)(const Acting &);
};

enum Mean : int32_t { POLICY_LOSS, ENTROPY_LOSS, APPROX_KL, CLIP_FRACTION, KL, VALUE_LOSS, LOSS, MEANS };
