// Label kernels that look a stated number of pixels far, one pixel a thread.

extern "C" __global__ void filter_down(const float *image, const float *weights, int reach, float *out, int rows, int columns)
{
    int u = blockIdx.x * blockDim.x + threadIdx.x, v = blockIdx.y * blockDim.y + threadIdx.y;
    if (u >= columns || v >= rows) return;
    float sum = 0.0f;
    for (int k = -reach; k <= reach; k++)
        sum += weights[k + reach] * image[(long long)min(max(v + k, 0), rows - 1) * columns + u];
    out[(long long)v * columns + u] = sum;
}

extern "C" __global__ void filter_across(const float *image, const float *weights, int reach, float *out, int rows, int columns)
{
    int u = blockIdx.x * blockDim.x + threadIdx.x, v = blockIdx.y * blockDim.y + threadIdx.y;
    if (u >= columns || v >= rows) return;
    float sum = 0.0f;
    for (int k = -reach; k <= reach; k++)
        sum += weights[k + reach] * image[(long long)v * columns + min(max(u + k, 0), columns - 1)];
    out[(long long)v * columns + u] = sum;
}

// 1 where no pixel within the radius exceeds this one, the first in raster order of equal ones.
extern "C" __global__ void peaks(const float *height, const unsigned char *mask, float radius, unsigned char *out, int rows, int columns)
{
    int u = blockIdx.x * blockDim.x + threadIdx.x, v = blockIdx.y * blockDim.y + threadIdx.y;
    if (u >= columns || v >= rows) return;
    long long here = (long long)v * columns + u;
    out[here] = 0;
    if (!mask[here]) return;
    int reach = (int)radius;
    for (int j = max(v - reach, 0); j <= min(v + reach, rows - 1); j++)
        for (int i = max(u - reach, 0); i <= min(u + reach, columns - 1); i++) {
            if ((float)((j - v) * (j - v) + (i - u) * (i - u)) > radius * radius) continue;
            long long there = (long long)j * columns + i;
            if (height[there] > height[here] || (height[there] == height[here] && there < here)) return;
        }
    out[here] = 1;
}

// Distance to the nearest pixel outside the mask, at most `limit`.
extern "C" __global__ void distances(const unsigned char *mask, float limit, float *out, int rows, int columns)
{
    int u = blockIdx.x * blockDim.x + threadIdx.x, v = blockIdx.y * blockDim.y + threadIdx.y;
    if (u >= columns || v >= rows) return;
    long long here = (long long)v * columns + u;
    if (!mask[here]) { out[here] = 0.0f; return; }
    int reach = (int)ceilf(limit), least = (reach + 1) * (reach + 1);
    for (int j = max(v - reach, 0); j <= min(v + reach, rows - 1); j++)
        for (int i = max(u - reach, 0); i <= min(u + reach, columns - 1); i++)
            if (!mask[(long long)j * columns + i]) least = min(least, (j - v) * (j - v) + (i - u) * (i - u));
    out[here] = fminf(sqrtf((float)least), limit);
}
