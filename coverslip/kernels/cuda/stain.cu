// Stain kernels. Four pixels a thread: 12 bytes are read and written as three 32-bit words, so that
// a warp's transfers are whole cache lines. No barriers and no shared memory.

struct Density { float m[9]; float offset[3]; float glass[3]; float target[3]; };
struct Lab { float step[9]; float added[3]; };

__device__ static unsigned char as_byte(float level)
{
    return (unsigned char)fminf(fmaxf(rintf(level), 0.0f), 255.0f);
}

__device__ static void recolour_density(const Density &d, const unsigned char *in, unsigned char *out)
{
    float od[3];
    for (int c = 0; c < 3; c++)  // base 2 throughout: the logarithm's base cancels in matrix products
        od[c] = fmaxf(d.glass[c] - __log2f((float)in[c] + 1.0f), 0.0f);
    for (int c = 0; c < 3; c++) {
        float found = od[0] * d.m[c] + od[1] * d.m[3 + c] + od[2] * d.m[6 + c] + d.offset[c];
        out[c] = as_byte(d.target[c] * exp2f(-found) - 1.0f);
    }
}

__device__ static float linear(unsigned char level)
{
    float x = level / 255.0f;
    return x > 0.04045f ? __powf((x + 0.055f) / 1.055f, 2.4f) : x / 12.92f;
}

__device__ static float curved(float x)
{
    x = fminf(fmaxf(x, 0.0f), 1.0f);
    return x > 0.0031308f ? 1.055f * __powf(x, 1.0f / 2.4f) - 0.055f : 12.92f * x;
}

__device__ static void recolour_lab(const Lab &t, const unsigned char *in, unsigned char *out)
{
    const float knee = 6.0f / 29.0f, slope = 3.0f * knee * knee, bend = 4.0f / 29.0f;
    float r = linear(in[0]), g = linear(in[1]), b = linear(in[2]), f[3], xyz[3];
    f[0] = (0.412453f * r + 0.357580f * g + 0.180423f * b) / 0.95047f;
    f[1] = 0.212671f * r + 0.715160f * g + 0.072169f * b;
    f[2] = (0.019334f * r + 0.119193f * g + 0.950227f * b) / 1.08883f;
    for (int c = 0; c < 3; c++)
        f[c] = f[c] > knee * knee * knee ? cbrtf(f[c]) : f[c] / slope + bend;
    for (int c = 0; c < 3; c++) {
        float moved = t.step[3 * c] * f[0] + t.step[3 * c + 1] * f[1] + t.step[3 * c + 2] * f[2] + t.added[c];
        xyz[c] = moved > knee ? moved * moved * moved : slope * (moved - bend);
    }
    xyz[0] *= 0.95047f;
    xyz[2] *= 1.08883f;
    // the inverse of the matrix above
    out[0] = as_byte(255.0f * curved(3.2404813f * xyz[0] - 1.5371515f * xyz[1] - 0.4985363f * xyz[2]));
    out[1] = as_byte(255.0f * curved(-0.9692549f * xyz[0] + 1.8759901f * xyz[1] + 0.0415559f * xyz[2]));
    out[2] = as_byte(255.0f * curved(0.0556466f * xyz[0] - 0.2040413f * xyz[1] + 1.0573111f * xyz[2]));
}

#define FOUR_PIXELS(RECOLOUR)                                                              \
    long long group = (long long)blockIdx.x * blockDim.x + threadIdx.x, first = 4 * group; \
    if (first >= pixels) return;                                                           \
    if (first + 4 <= pixels) {                                                             \
        unsigned int words[3];                                                             \
        unsigned char *bytes = (unsigned char *)words;                                     \
        const unsigned int *source = (const unsigned int *)rgb + 3 * group;                \
        unsigned int *target = (unsigned int *)out + 3 * group;                            \
        for (int i = 0; i < 3; i++) words[i] = source[i];                                  \
        for (int p = 0; p < 4; p++) RECOLOUR(values, bytes + 3 * p, bytes + 3 * p);        \
        for (int i = 0; i < 3; i++) target[i] = words[i];                                  \
    } else {                                                                               \
        for (long long p = first; p < pixels; p++) RECOLOUR(values, rgb + 3 * p, out + 3 * p); \
    }

extern "C" __global__ void transform_density(const unsigned char *rgb, Density values, unsigned char *out, long long pixels)
{
    FOUR_PIXELS(recolour_density)
}

extern "C" __global__ void transform_lab(const unsigned char *rgb, Lab values, unsigned char *out, long long pixels)
{
    FOUR_PIXELS(recolour_lab)
}

// Concentrations of three stains, or of one: out[i * stains + s] = sum over c of od[c] * inverse[c * 3 + s].
extern "C" __global__ void stain_densities(const unsigned char *rgb, Density values, float *out, long long pixels, int first, int stains)
{
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= pixels) return;
    float od[3];
    for (int c = 0; c < 3; c++)
        od[c] = values.glass[c] - logf((float)rgb[3 * i + c] + 1.0f);
    for (int s = 0; s < stains; s++)
        out[i * stains + s] = od[0] * values.m[first + s] + od[1] * values.m[3 + first + s] + od[2] * values.m[6 + first + s];
}
