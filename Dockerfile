# One image for the worker, the API, migrations and (with the npm packages) the optional local chain.
FROM node:22-bookworm-slim AS npm
WORKDIR /app
COPY package.json package-lock.json .npmrc ./
RUN npm install --no-save --omit=dev --no-audit --no-fund

FROM python:3.12-slim-bookworm
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN useradd --create-home --uid 10001 settle
WORKDIR /app
COPY requirements-runtime.txt ./
RUN python -m pip install --no-cache-dir --require-hashes -r requirements-runtime.txt
COPY --from=npm /app/node_modules node_modules
COPY . .
RUN python -m pip install --no-cache-dir --no-deps --editable . \
    && mkdir /state && chown settle /state
USER settle
ENTRYPOINT ["settle"]
CMD ["worker"]
