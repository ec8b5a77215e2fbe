// Area-weighted resampling, one output pixel a thread. Windows of a batch lie one behind the other.

extern "C" __global__ void area_resample(const unsigned char *image, int height, int width, double x, double y,
                                         double sx, double sy, unsigned char *out, int rows, int columns)
{
    int u = blockIdx.x * blockDim.x + threadIdx.x, v = blockIdx.y * blockDim.y + threadIdx.y;
    if (u >= columns || v >= rows) return;
    double left = x + u * sx, right = x + (u + 1) * sx, top = y + v * sy, bottom = y + (v + 1) * sy;
    int u0 = max((int)floor(left), 0), u1 = min((int)ceil(right), width);
    int v0 = max((int)floor(top), 0), v1 = min((int)ceil(bottom), height);
    float dark[3] = {0.0f, 0.0f, 0.0f};  // white outside the image: 255 - image is 0 there
    for (int j = v0; j < v1; j++) {
        float down = (float)((fmin(bottom, j + 1.0) - fmax(top, (double)j)) / sy);
        const unsigned char *row = image + 3LL * width * j;
        for (int i = u0; i < u1; i++) {
            float share = down * (float)((fmin(right, i + 1.0) - fmax(left, (double)i)) / sx);
            for (int c = 0; c < 3; c++) dark[c] += share * (255 - row[3 * i + c]);
        }
    }
    for (int c = 0; c < 3; c++)
        out[3LL * ((long long)v * columns + u) + c] = (unsigned char)floorf(255.0f - dark[c] + 0.5001f);
}
