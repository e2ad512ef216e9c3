// What Python hands over; `library.py` mirrors it.

#pragma once

#include <cstdint>

extern "C" {

// One activation and the linear layer after it.
struct Link {
    int64_t inputs, outputs, side;  // channels, and k
    int64_t activation;             // a Kind
    int64_t width;                  // its values for each entry, blocks of channels; `inputs` in all
    double beta;                    // its slope, for those that have one
    const void* weight;             // (outputs, inputs, k, k)
    const void* bias;               // (outputs), or a row for each sample or pixel
    int64_t bias_stride;            // 0, or from one sample's to the next
    int64_t bias_step;              // 0, or from one pixel's to the next
    void* matrix;                   // M and its transpose, as `pack` leaves them
    void* input;                    // h in front of the activation; null in the first link
    void* slope;                    // phi'(h), `inputs` wide; null where not wanted or none
    void* tangent;                  // what enters the activation along each direction
    void* weight_gradient;
    void* bias_gradient;
    double* beta_gradient;
};

// A batch: `directions` stacks of `samples` images; height = width = 1 for vectors.
struct Shape {
    int64_t links, samples, directions, height, width;
    int64_t terms;  // of power sums
};

enum Kind : int64_t { NONE, ELU, TANH, LIPSWISH, CLIPSWISH, SINE, SINE_COSINE };

// Added to a kind where h stands in front of its values.
enum : int64_t { BESIDE = 16 };

}  // extern "C"
